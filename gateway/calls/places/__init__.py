"""Calls that wait for a worker's place."""

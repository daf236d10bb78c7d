"""Stored recordings in the database."""

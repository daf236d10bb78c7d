"""Benchmarks of recordings: their cost, and their alignment."""

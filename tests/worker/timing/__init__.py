"""Tests of worker.timing."""

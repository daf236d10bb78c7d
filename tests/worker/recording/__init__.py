"""Tests of worker.recording."""

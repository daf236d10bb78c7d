"""Tests of worker.streams."""

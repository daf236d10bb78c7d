"""Tests of worker.pulse."""

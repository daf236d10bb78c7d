"""Tests of worker.brains."""

"""Tests of worker.opening."""

"""Tests of worker.voice."""

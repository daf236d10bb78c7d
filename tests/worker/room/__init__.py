"""Tests of worker.room."""

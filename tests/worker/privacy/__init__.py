"""Tests of worker.privacy."""

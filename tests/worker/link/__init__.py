"""Tests of worker.link."""

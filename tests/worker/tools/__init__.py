"""Tests of worker.tools."""

"""Tests of core.recordings."""

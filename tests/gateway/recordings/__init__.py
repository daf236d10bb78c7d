"""Tests of gateway.recordings."""

"""Tests of gateway.api.recordings."""

"""Tests of gateway.calls.streams."""

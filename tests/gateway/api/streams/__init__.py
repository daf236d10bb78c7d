"""Tests of gateway.api.streams."""

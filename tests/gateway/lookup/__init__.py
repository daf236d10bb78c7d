"""Tests of gateway.lookup."""

"""Tests of gateway.numbers."""

"""Tests of gateway.fields."""

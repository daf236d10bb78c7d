"""Tests of gateway.calls.places and gateway.store.places."""

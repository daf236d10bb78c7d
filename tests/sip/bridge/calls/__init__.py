"""Tests of sip.bridge.calls."""

"""Tests of sip.bridge.stack."""

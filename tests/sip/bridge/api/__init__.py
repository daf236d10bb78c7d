"""Tests of sip.bridge.api."""

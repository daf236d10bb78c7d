"""Tests of sip.bridge."""

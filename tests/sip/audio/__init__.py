"""Tests of sip.audio."""

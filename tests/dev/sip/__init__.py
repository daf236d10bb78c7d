"""Tests of dev.sip."""

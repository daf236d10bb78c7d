"""Tests of dev.standins."""

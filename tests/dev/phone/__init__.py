"""Tests of dev.phone."""

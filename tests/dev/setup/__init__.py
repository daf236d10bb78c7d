"""Tests of dev.setup."""

"""Tests of dev.providers."""

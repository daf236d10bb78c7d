"""Tests of dev.bench."""

"""Tests of dev.stack."""

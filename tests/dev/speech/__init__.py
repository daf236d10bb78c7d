"""Tests of dev.speech."""

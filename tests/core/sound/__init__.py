"""Tests of core.sound."""

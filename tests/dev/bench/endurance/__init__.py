"""Tests of dev.bench.endurance."""

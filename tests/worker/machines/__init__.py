"""Tests of worker.machines."""

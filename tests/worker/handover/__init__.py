"""Tests of worker.handover."""

"""Tests of core.tasks."""

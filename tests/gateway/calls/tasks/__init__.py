"""Tests of gateway/calls/tasks."""

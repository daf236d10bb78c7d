"""Tests of core.webhooks."""

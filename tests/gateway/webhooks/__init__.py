"""Tests of gateway.webhooks."""

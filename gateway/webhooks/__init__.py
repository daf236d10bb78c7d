"""Delivers events to tenants' webhooks."""

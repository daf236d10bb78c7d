"""Webhooks of tenants: the payload, its signature, and what is wrong with an answer."""

"""All persistence: calls, agents, numbers, credentials, webhooks, the outbox, and caches."""

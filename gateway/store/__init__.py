"""All persistence: calls, agents, numbers, credentials, webhooks, and the outbox."""

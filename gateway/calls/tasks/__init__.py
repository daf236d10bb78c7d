"""Tasks: calls placed by Twilio's REST API, and repeated (gateway.store.streams.tasks)."""

"""The LiveKit agent worker: handles one call from its first event to its last."""

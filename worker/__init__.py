"""The LiveKit agent worker: one call, top to bottom."""

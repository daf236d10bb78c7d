"""Handlers of sessions: calls on WebSockets, without a room."""

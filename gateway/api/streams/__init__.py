"""Handlers of calls on WebSockets, without a room: sessions, and tasks."""

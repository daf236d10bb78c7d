"""Finds or builds livekit-server. Standard library only: make runs it before any installation."""

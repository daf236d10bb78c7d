"""Finds or builds livekit-server. Standard library only: make asks before it installs anything."""

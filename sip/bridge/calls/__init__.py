"""Calls in progress: how they come in and go out, who is let in, and how they end."""

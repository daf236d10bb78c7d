"""Transfers the caller to a human, cold or warm, if the line supports it."""

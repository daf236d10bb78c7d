"""Transfers the caller to a human, cold or warm."""

"""Transfers the caller to a human, cold or warm, as far as the line can."""

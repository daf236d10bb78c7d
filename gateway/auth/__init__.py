"""Verifies tokens and API secrets: who is asking."""

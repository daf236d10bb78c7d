"""Lookup of a call's agent, created through the API or a file, and of its number."""

"""Looks up what a call needs: its agent, made through the API or a file, and its number."""

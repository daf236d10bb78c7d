"""Agents that are lost in a call, and their successors."""

"""Agents that are lost in a call: who notices, who is sent, and what the next one is told."""

"""Calls on every line while gateways and workers are stopped, killed and frozen."""

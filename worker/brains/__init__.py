"""Answers the caller's turns: an LLM that the worker asks (hosted), or the tenant's webhook."""

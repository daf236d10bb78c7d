"""Answers the caller's turns: a model that the worker asks (hosted), or the tenant's webhook."""

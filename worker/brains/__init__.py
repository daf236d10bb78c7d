"""Answers the caller's turns: a model of ours (hosted), or the tenant's webhook."""

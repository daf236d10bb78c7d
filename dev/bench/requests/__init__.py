"""Benchmarks of the gateway's HTTP requests, without a conversation."""

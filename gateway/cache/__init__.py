"""Keeps near what calls look up again and again, in this process or in Redis."""

"""Persistence of calls on WebSockets, beside the calls' own records."""

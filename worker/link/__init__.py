"""The way home: the gateway, as the worker calls it, and the events spooled for it."""

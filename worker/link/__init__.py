"""The link to the gateway: a client of its internal API, and the spool of events for it."""

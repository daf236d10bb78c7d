"""The embedded SIP service: LiveKit's own SIP API for one machine. For laptops and tests."""

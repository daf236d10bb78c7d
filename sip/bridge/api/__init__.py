"""The bridge's HTTP server: LiveKit's SIP API."""

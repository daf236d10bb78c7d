"""The bridge's face: LiveKit's SIP API over HTTP."""

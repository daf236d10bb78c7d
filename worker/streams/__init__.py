"""Sessions without a room: the far end is on a WebSocket (Twilio Media Streams, or ours)."""

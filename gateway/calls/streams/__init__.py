"""Sessions: calls whose far end is on a WebSocket, without a LiveKit room."""

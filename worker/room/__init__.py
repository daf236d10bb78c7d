"""The room line: the far end is a participant of a LiveKit room (worker.line)."""

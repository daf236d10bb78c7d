"""Media Streams: the audio of a call over a WebSocket, as Twilio sends and plays it."""

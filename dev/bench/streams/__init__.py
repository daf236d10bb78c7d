"""Calls over Twilio's Media Streams, beside Pipecat and a bare livekit-agents session."""

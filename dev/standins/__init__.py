"""Stand-ins for what a call meets: LiveKit, Twilio, a trunk, an agent that echoes; their faults."""

"""Stand-ins for LiveKit, Twilio, a SIP trunk and an agent (an echo), with faults on demand."""

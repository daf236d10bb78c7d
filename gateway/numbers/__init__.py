"""Phone numbers: attach, provision and repair them, at LiveKit's SIP service and at Twilio."""

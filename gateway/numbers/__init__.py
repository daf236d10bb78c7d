"""Phone numbers: attaching, provisioning and repairing them in LiveKit's SIP service and Twilio."""

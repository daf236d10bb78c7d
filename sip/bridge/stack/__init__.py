"""The SIP stack (baresip): its endpoint, its calls, and its message trace."""

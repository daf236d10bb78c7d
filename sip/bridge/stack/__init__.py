"""The SIP stack (baresip): where it listens, its calls, and its message trace."""

"""Who is in the room, how they leave it, and how a call ends."""

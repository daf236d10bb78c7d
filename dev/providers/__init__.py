"""Local servers that speak the wire protocols of Deepgram, OpenAI and Cartesia."""

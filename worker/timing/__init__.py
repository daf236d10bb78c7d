"""Measures a turn's latency from the audio."""

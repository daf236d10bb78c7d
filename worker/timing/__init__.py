"""Measures a turn's latency from the audio (worker.voice.turn_taking decides when it is over)."""

"""Answering machines: recognises them, detects the beep, leaves a message."""

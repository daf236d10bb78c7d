"""Answering machines: recognise them, hear the beep, leave a message."""

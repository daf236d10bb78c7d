"""Measures how well a recording and its transcript line up with what the far end said and heard."""

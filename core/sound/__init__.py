"""When sound was said and heard: its delay, its arrival, and how loud it was."""

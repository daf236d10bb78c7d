"""The soak: calls for minutes or hours, and what grew meanwhile."""

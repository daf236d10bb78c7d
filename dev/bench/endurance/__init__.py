"""The soak: calls for minutes or hours, and checks that nothing grows."""

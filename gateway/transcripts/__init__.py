"""A call's transcript as text."""

"""What gateway and stream workers share about sessions, which are calls without a room."""

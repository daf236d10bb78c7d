"""What was said and done before: the history of a conversation, and the replies it still lacks."""

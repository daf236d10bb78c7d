"""The workers' places: how many there are, which calls hold or want one, and who is next."""

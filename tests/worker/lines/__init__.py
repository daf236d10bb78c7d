"""The contract of all lines: the same conversation gives the same record on each."""

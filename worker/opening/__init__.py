"""The part of a call between the answer and the greeting: the disclosure, and consent."""

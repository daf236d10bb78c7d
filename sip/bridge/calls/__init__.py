"""Calls in progress: inbound and outbound, their admission, and their endings."""

"""The browser's part of sessions, run by node."""

"""Whole calls, over SIP, through every process."""

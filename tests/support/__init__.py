"""Helpers of the tests: rigs, stand-ins, databases."""

"""Decides what of a call's words, keys and audio may be kept."""

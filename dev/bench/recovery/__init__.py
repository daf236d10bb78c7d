"""Kills agents in calls by phone, and measures how long the caller is without one."""

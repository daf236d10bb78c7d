"""Authentication: verifies tokens and API secrets."""

"""The HTTP API: one small aiohttp service, the only writer of the database."""

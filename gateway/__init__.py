"""The HTTP front door: one small aiohttp service, the only writer of the database."""

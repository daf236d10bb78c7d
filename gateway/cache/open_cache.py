"""Opens the cache that ``CACHE_URL`` names."""

from __future__ import annotations

from urllib.parse import urlsplit

from gateway.cache.base import Cache, NoCache
from gateway.cache.memory import MemoryCache


def open_cache(url: str, *, shared_database: bool) -> Cache:
    """Return the cache for ``CACHE_URL``.

    Raises ValueError, never with the URL, which may hold a password. With ``shared_database``,
    ``memory://`` caches nothing: this process would see another gateway's changes in the same
    PostgreSQL only after half an hour.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme == "memory":
            return NoCache() if shared_database else MemoryCache()
        if scheme in {"redis", "rediss"}:
            from gateway.cache.redis import RedisCache

            return RedisCache(url)
    except ValueError:
        pass
    raise ValueError("CACHE_URL must be memory://, or redis://host:port/database") from None

"""The web pages that may open WebSockets.

A browser lets any page open a socket to any server (CORS does not apply to WebSockets), but names
the page's origin in the handshake. Other clients send no origin, and need none: a token decides.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import hdrs, web

from core.errors import Forbidden
from core.settings import Settings

_ANY = "*"
_PORTS = {"http": 80, "https": 443}


def check_origin(request: web.Request, settings: Settings) -> None:
    """Raise Forbidden ``ORIGIN_NOT_ALLOWED`` for a page that may not open sockets.

    Pages of PUBLIC_URL, of the host that the request names, and of SESSION_ORIGINS may.
    """
    if _ANY in settings.session_origins:
        return
    permitted = {_canonical(url) for url in (settings.public_base_url, *settings.session_origins)}
    # Behind a proxy the scheme of the page is not known here, so the host decides.
    hosts = {f"//{host.lower()}" for host in request.headers.getall(hdrs.HOST, [])}
    for origin in request.headers.getall(hdrs.ORIGIN, []):
        page = _canonical(origin)
        if page is None or not (page in permitted or {page.partition(":")[2]} == hosts):
            raise Forbidden(
                "Pages of this origin may not open sessions (SESSION_ORIGINS)",
                code="ORIGIN_NOT_ALLOWED",
            )


def _canonical(origin: str) -> str | None:
    """Return ``scheme://host[:port]`` as browsers write it; None if it is not one."""
    try:
        parts = urlsplit(origin.strip())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown}"

"""``GET /try/{agentId}``: a page to talk to an agent from a browser, for those who build it.

The page is the same for all visitors and contains no data: it calls the API with a token that the
visitor enters. LiveKit's browser library comes from npm (package.json), not from this repository;
if it is missing, the page says so.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from core.errors import NotFound
from core.settings import Settings
from gateway.http.route import Route
from gateway.keys import SETTINGS

_GATEWAY = Path(__file__).parent.parent
_STATIC = _GATEWAY / "static"
_PAGE = _STATIC / "try.html"
LIVEKIT_CLIENT = (
    _GATEWAY.parent / "node_modules" / "livekit-client" / "dist" / "livekit-client.umd.js"
)
"""LiveKit's browser library, as installed by ``npm ci``."""

_FILES: dict[str, tuple[Path, str]] = {
    "try.css": (_STATIC / "try.css", "text/css"),
    "try.js": (_STATIC / "try.js", "text/javascript"),
    "call.js": (_STATIC / "call.js", "text/javascript"),
    "socket_call.js": (_STATIC / "socket_call.js", "text/javascript"),
    "switchroom.js": (_STATIC / "switchroom.js", "text/javascript"),
    "switchroom-audio.js": (_STATIC / "switchroom-audio.js", "text/javascript"),
    "transcript.js": (_STATIC / "transcript.js", "text/javascript"),
    "try.svg": (_STATIC / "try.svg", "image/svg+xml"),
    "livekit-client.js": (LIVEKIT_CLIENT, "text/javascript"),
}
_ALWAYS = {
    # Revalidated each time, mostly with a 304, so that an update takes effect at once.
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]+")


@dataclass(frozen=True, slots=True)
class _File:
    raw: bytes
    packed: bytes
    tag: str


async def page(request: web.Request) -> web.StreamResponse:
    """Public for every agent id; the token that the visitor enters decides what is allowed."""
    headers = {
        "Content-Security-Policy": security_policy(request.app[SETTINGS]),
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return await _answer(request, _PAGE, "text/html", headers)


async def static(request: web.Request) -> web.StreamResponse:
    path, kind = _FILES.get(request.match_info["name"], (None, ""))
    if path is None or not await asyncio.to_thread(path.is_file):
        raise NotFound("No such path")
    return await _answer(request, path, kind, {})


def security_policy(settings: Settings) -> str:
    """Return the Content-Security-Policy: only this gateway's files, and LiveKit."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            f"connect-src 'self' {' '.join(livekit_origins(settings))}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def livekit_origins(settings: Settings) -> list[str]:
    """Return LIVEKIT_PUBLIC_URL as WebSocket and HTTP (for the library to diagnose failures)."""
    address = urlsplit(settings.livekit_browser_url)
    host = address.netloc.rpartition("@")[2]
    if not _HOST.fullmatch(host):
        # It could end the directive and start another one.
        return []
    tls = "s" if address.scheme in {"wss", "https"} else ""
    return [f"ws{tls}://{host}", f"http{tls}://{host}"]


async def _answer(
    request: web.Request, path: Path, kind: str, headers: dict[str, str]
) -> web.StreamResponse:
    file = await asyncio.to_thread(lambda: _read(path, path.stat().st_mtime_ns))
    headers = {**_ALWAYS, **headers, hdrs.ETAG: file.tag, hdrs.VARY: hdrs.ACCEPT_ENCODING}
    if file.tag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
        return web.Response(status=304, headers=headers)
    body = file.raw
    if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        body = file.packed
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)


@functools.lru_cache(maxsize=32)
def _read(path: Path, _changed: int) -> _File:
    raw = path.read_bytes()
    # A weak tag, because it stands for the compressed and the plain file.
    tag = f'W/"{hashlib.sha256(raw).hexdigest()[:32]}"'
    return _File(raw, gzip.compress(raw, mtime=0), tag)


ROUTES: tuple[Route, ...] = (
    Route(
        "GET /try/{agentId:[A-Za-z0-9_-]+}",
        page,
        "A page to talk to an agent from a browser",
        content="text/html",
        errors=((404, "NOT_FOUND"),),
        public=True,
    ),
    Route("GET /static/{name}", static, "The page's files", internal=True),
)

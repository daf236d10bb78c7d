"""Where the application's hosts are: this stand-in connects to this machine only."""

from __future__ import annotations

from urllib.parse import urlsplit

from dev.standins.twilio.errors import Fault

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
BAD_HOST = 11210


class Hosts(dict[str, str]):
    """``{"voice.example.com": "127.0.0.1:8080"}``: a public host, and where it is without TLS."""

    def address(self, url: str) -> tuple[str, int]:
        """Return host and port of a URL. Raises Fault 11210 if it is not on this machine."""
        parts = urlsplit(url)
        host, _, port = self.get(parts.netloc, "").rpartition(":")
        if host:
            return host, int(port)
        if parts.scheme in ("http", "ws") and parts.hostname in LOOPBACK:
            return str(parts.hostname), parts.port or 80
        raise Fault(BAD_HOST, f"{parts.netloc} is not in the stand-in's hosts")

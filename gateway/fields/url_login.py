"""Logins in addresses, as they were kept before addresses with them were refused."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit, urlunsplit


def split_login(url: str) -> tuple[str, str | None]:
    """The address without its login, and the login as the header that it stands for.

    That is the value of ``Authorization`` that HTTP clients make of it (RFC 7617); None: there
    was no login.
    """
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = login.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    bare = urlunsplit(parts._replace(netloc=host))
    return bare, f"Basic {base64.b64encode(pair).decode()}"

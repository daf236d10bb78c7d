"""Logins in URLs that were stored before such URLs were refused."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit, urlunsplit


def split_login(url: str) -> tuple[str, str | None]:
    """Return the URL without its login, and the ``Authorization`` value that the login stands for.

    HTTP clients build that value from the login (RFC 7617). It is None without a login.
    """
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = login.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    bare = urlunsplit(parts._replace(netloc=host))
    return bare, f"Basic {base64.b64encode(pair).decode()}"

"""Digest authentication, the challenger's side (RFC 7616, RFC 2617), sans-I/O."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from dataclasses import dataclass, field

from aiosipua.headers import AuthChallenge, parse_auth, stringify_auth
from aiosipua.message import SipRequest, SipResponse

from dev.sip import messages


@dataclass(frozen=True)
class Credentials:
    """The user name and password for the digest (RFC 7616; RFC 2617 without qop)."""

    username: str
    password: str = field(repr=False)


class DigestGate:
    """Decides whether an INVITE passes, is challenged or is refused."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        realm: str,
        status: int,
        qop: bool,
        wrong_answers_allowed: int,
    ) -> None:
        self._credentials = credentials
        self.challenges = 0
        self.right_answers = 0
        self.wrong_answers = 0
        self.usernames: set[str] = set()  # seen in answers; passwords and hashes are not kept
        self._realm = realm
        self._status = status
        self._qop = qop
        self._allowed = wrong_answers_allowed
        self._nonces: set[str] = set()
        self._wrong: Counter[str] = Counter()  # by Call-ID

    def check(self, request: SipRequest) -> SipResponse | None:
        """Return None if the request has the right answer, else the response to send."""
        header = "Authorization" if self._status == 401 else "Proxy-Authorization"
        value = request.headers.get_first(header)
        if value is None:
            return self._challenge(request)
        params = {k.lower(): v for k, v in parse_auth(value, credentials=True).params.items()}
        if params.get("username"):
            self.usernames.add(params["username"])
        if params.get("nonce") not in self._nonces:
            return self._challenge(request, stale=True)
        if self._is_right(request.method, params):
            self.right_answers += 1
            return None
        self.wrong_answers += 1
        call_id = request.call_id or ""
        self._wrong[call_id] += 1
        if self._wrong[call_id] > self._allowed:
            return messages.reply(request, 403)
        return self._challenge(request)

    def _challenge(self, request: SipRequest, *, stale: bool = False) -> SipResponse:
        self.challenges += 1
        nonce = secrets.token_hex(16)
        self._nonces.add(nonce)
        params = {"realm": self._realm, "nonce": nonce, "algorithm": "MD5"}
        if self._qop:
            params["qop"] = "auth"
        if stale:
            params["stale"] = "true"
        name = "WWW-Authenticate" if self._status == 401 else "Proxy-Authenticate"
        challenge = stringify_auth(AuthChallenge("Digest", params))
        return messages.reply(request, self._status, headers={name: challenge})

    def _is_right(self, method: str, params: dict[str, str]) -> bool:
        if params.get("realm") != self._realm or params.get("username") != (
            self._credentials.username
        ):
            return False
        # Without qop the hash does not cover the client's nonce.
        if self._qop and params.get("qop") != "auth":
            return False
        expected = digest_response(self._credentials, method, params)
        return hmac.compare_digest(expected, params.get("response", ""))


def digest_response(credentials: Credentials, method: str, params: dict[str, str]) -> str:
    """Return the ``response`` of a digest answer with MD5 (RFC 7616 §3.4.1, RFC 2617 §3.2.2.1).

    Args:
        params: ``realm``, ``nonce``, ``uri``, and with ``qop``: ``nc`` and ``cnonce``.
    """
    realm, nonce, uri = (params.get(name, "") for name in ("realm", "nonce", "uri"))
    a1 = _md5(f"{credentials.username}:{realm}:{credentials.password}")
    a2 = _md5(f"{method}:{uri}")
    if "qop" in params:
        middle = f"{nonce}:{params.get('nc', '')}:{params.get('cnonce', '')}:{params['qop']}"
    else:
        middle = nonce
    return _md5(f"{a1}:{middle}:{a2}")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

"""Twilio's requests to the application: form-encoded, and signed with the account's token."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urldefrag, urlencode, urlsplit, urlunsplit

import aiohttp
import yarl
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from dev.standins.twilio.errors import Fault
from dev.standins.twilio.hosts import Hosts

RETRIEVAL_FAILURE = 11200
_INVALID_POLICY = 11243
_TIMEOUT = aiohttp.ClientTimeout(total=15, sock_connect=5)
"""Twilio's own limits."""


_KINDS = ("ct", "rt", "4xx", "5xx")


class _Failed(Fault):
    """``kind``: the retry policy that it falls under; empty: none."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(RETRIEVAL_FAILURE, message)
        self.kind = kind


def _retries(overrides: str) -> tuple[int, Sequence[str]]:
    """Return how often a request is repeated, and after what kinds of failure.

    https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides
    """
    given = dict(parse_qsl(overrides, strict_parsing=True)) if overrides else {}
    count, policy = int(given.pop("rc", "1")), given.pop("rp", "ct")
    kinds = _KINDS if policy == "all" else policy.split(",")
    if given or not 0 <= count <= 5 or not set(kinds) <= set(_KINDS):
        raise Fault(_INVALID_POLICY, f"connection overrides: {overrides}")
    return count, kinds


def _kind(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return "ct"
    # Nothing is documented about a connection that is lost before the answer: Twilio may ask again.
    return "rt" if isinstance(error, TimeoutError) else ""


@dataclass(frozen=True)
class Sent:
    """A request to the application, and its answer."""

    account: str
    method: str
    url: str
    form: Mapping[str, str]
    status: int | None
    """None: no answer came."""
    content_type: str = ""
    text: str = ""


class Webhooks:
    """Sends requests and records them, in the order of their answers."""

    def __init__(self, tokens: Mapping[str, str], hosts: Hosts) -> None:
        self.sent: list[Sent] = []
        self._tokens = tokens
        self._hosts = hosts
        self._session = aiohttp.ClientSession(
            timeout=_TIMEOUT, headers={"User-Agent": "TwilioProxy/1.1", "Accept": "*/*"}
        )

    async def close(self) -> None:
        await self._session.close()

    def sign(self, account: str, url: str, form: Mapping[str, str]) -> str:
        """Return the value of X-Twilio-Signature."""
        return str(RequestValidator(self._tokens[account]).compute_signature(url, dict(form)))

    async def send(
        self, account: str, url: str, form: Mapping[str, str], method: str = "POST"
    ) -> Sent:
        """Send a request, again if the URL's fragment asks for it.

        Raises Fault 11200 if no answer with status 2xx comes.
        """
        url, overrides = urldefrag(url)
        retries, policy = _retries(overrides)
        while True:
            try:
                return await self._send(account, url, form, method)
            except _Failed as failed:
                if not retries or failed.kind not in policy:
                    raise
                retries -= 1

    async def _send(self, account: str, url: str, form: Mapping[str, str], method: str) -> Sent:
        target = url
        data: Mapping[str, str] | None = form
        if method == "GET":
            target += ("&" if urlsplit(url).query else "?") + urlencode(form)
            data = None
        headers = {
            "X-Twilio-Signature": self.sign(account, target, data or {}),
            "I-Twilio-Idempotency-Token": str(uuid.uuid4()),
        }
        there, host = self._located(target)
        try:
            async with self._session.request(
                method, there, data=data, headers={**headers, **host}, allow_redirects=False
            ) as response:
                sent = Sent(
                    account,
                    method,
                    url,
                    form,
                    response.status,
                    response.headers.get("Content-Type", ""),
                    await response.text(),
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.sent.append(Sent(account, method, url, form, None))
            raise _Failed(_kind(error), f"{method} {url}: {error!r}") from None
        self.sent.append(sent)
        if not 200 <= response.status < 300:
            kind = f"{response.status // 100}xx"
            raise _Failed(kind, f"{method} {url}: status {response.status}")
        return sent

    async def replay(self, sent: Sent) -> Sent:
        """Send a request once more, as Twilio may. Raises Fault 11200."""
        return await self.send(sent.account, sent.url, sent.form, sent.method)

    def _located(self, url: str) -> tuple[yarl.URL, dict[str, str]]:
        """Return the URL to connect to, and its Host header. Raises Fault 11210."""
        host, port = self._hosts.address(url)
        parts = urlsplit(url)
        netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        there = urlunsplit(("http", netloc, parts.path, parts.query, ""))
        # As it was signed: no character is encoded otherwise.
        return yarl.URL(there, encoded=True), {"Host": parts.netloc}

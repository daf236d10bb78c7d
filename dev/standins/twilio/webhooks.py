"""Twilio's requests to the application: form-encoded, and signed with the account's token."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urldefrag, urlencode, urlsplit, urlunsplit

import aiohttp
import yarl
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from dev.standins.twilio.errors import Fault
from dev.standins.twilio.hosts import Hosts

RETRIEVAL_FAILURE = 11200
_TIMEOUT = aiohttp.ClientTimeout(total=15, sock_connect=5)
"""Twilio's own limits."""


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
        """Send a request. Raises Fault 11200 if no answer with status 2xx comes."""
        url, target = urldefrag(url).url, urldefrag(url).url
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
            raise Fault(RETRIEVAL_FAILURE, f"{method} {url}: {error!r}") from None
        self.sent.append(sent)
        if not 200 <= response.status < 300:
            raise Fault(RETRIEVAL_FAILURE, f"{method} {url}: status {response.status}")
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

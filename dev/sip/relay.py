"""A stateless SIP proxy on one UDP socket of loopback (RFC 3261 §16.11).

The trunk and the phone are built on it. The policy decides which messages pass and which
are answered here; the relay handles Via, Route and Record-Route. Media does not pass here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from typing import Protocol, Self, cast

from aiosipua.message import SipRequest, SipResponse

from dev.sip import messages
from dev.sip.messages import Address

logger = logging.getLogger(__name__)


class Policy(Protocol):
    """Decides about the messages that reach a proxy."""

    def request(self, request: SipRequest, source: Address, for_us: bool) -> bool:
        """Handle a request before it is forwarded; may change its URI and headers.

        Args:
            for_us: No Route is left and the Request-URI names this proxy, so the
                policy must give it another URI or return False.

        Returns:
            True to forward it; False if the policy answered or dropped it.
        """

    def response(self, response: SipResponse, source: Address) -> bool:
        """Handle a response before it is forwarded; False drops it."""


class SipRelay(asyncio.DatagramProtocol):
    """One proxy. Open it with :meth:`open`, end it with :meth:`close`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._transport: asyncio.DatagramTransport | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self.address: Address = ("", 0)
        self.malformed = 0  # number of datagrams that were not SIP messages

    @classmethod
    async def open(
        cls, policy: Callable[[Self], Policy], host: str = "127.0.0.1", port: int = 0
    ) -> Self:
        """Bind, and make the policy for this relay. Port 0 takes a free one."""
        relay = cls(cast(Policy, None))
        relay._policy = policy(relay)
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: relay, local_addr=(host, port))
        return relay

    async def close(self) -> None:
        """Close the socket and wait until it is closed."""
        if self._transport is not None:
            self._transport.close()
            await self._closed

    def send(self, message: SipRequest | SipResponse, target: Address) -> None:
        """Send one message."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(bytes(message), target)

    def answer(self, response: SipResponse) -> None:
        """Send our own response to the address in its top Via."""
        self.send(response, messages.response_target(response))

    # --- asyncio.DatagramProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        host, port = self._transport.get_extra_info("sockname")[:2]
        self.address = (host, port)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def error_received(self, exc: Exception) -> None:
        logger.warning("sip relay socket error", extra={"error": str(exc)})

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        if not data.strip():
            return  # a keep-alive (RFC 5626 §3.5.1)
        source = (str(addr[0]), int(addr[1]))
        try:
            message = messages.parse(data)
        except messages.MalformedMessage as error:
            self.malformed += 1
            logger.warning("not a sip message", extra={"error": str(error), "bytes": len(data)})
            return
        if isinstance(message, SipRequest):
            self._request(message, source)
        else:
            self._response(message, source)

    # --- the proxy's steps

    def _request(self, request: SipRequest, source: Address) -> None:
        messages.stamp_received(request, source)
        messages.pop_own_routes(request, self.address)
        for_us = messages.next_hop(request) == self.address
        if not self._policy.request(request, source, for_us):
            return
        hops = request.headers.get_first("max-forwards") or "70"
        if not hops.isdigit() or int(hops) == 0:
            self._refuse(request, 483)
            return
        target = messages.next_hop(request)
        if target == self.address or not _is_ip(target[0]):
            # Host names are not resolved: this proxy is for loopback only.
            self._refuse(request, 502)
            return
        request.set_header("Max-Forwards", str(int(hops) - 1))
        if messages.to_tag(request) is None and request.method in {"INVITE", "REFER", "SUBSCRIBE"}:
            messages.push_record_route(request, self.address)
        messages.push_via(request, self.address)
        self.send(request, target)

    def _refuse(self, request: SipRequest, status: int) -> None:
        if request.method != "ACK":
            self.answer(messages.reply(request, status))

    def _response(self, response: SipResponse, source: Address) -> None:
        via = response.via[0]
        if (via.host, via.port or 5060) != self.address or len(response.via) < 2:
            return  # not ours (RFC 3261 §16.7 step 3)
        messages.pop_via(response)
        if self._policy.response(response, source):
            self.send(response, messages.response_target(response))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

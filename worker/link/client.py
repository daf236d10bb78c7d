"""The gateway as a worker sees it: what it is asked, and whether a failure is worth a retry."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from pydantic import ValidationError

from core.jobs import Assignment, CallBrief, Heartbeat, InboundRoom
from core.models import CallEvent
from core.transfers import TransferOrder, TransferResult

_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)


class GatewayError(Exception):
    """The base of the two below."""


class Unavailable(GatewayError):
    """Not reachable, overloaded or broken for now: the same request may succeed later."""


class Refused(GatewayError):
    """The gateway understood and said no (401, 404, 422, …): asking again is pointless."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Gateway:
    """The gateway's internal API. Raises Unavailable or Refused from every method."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str) -> None:
        self._http = http
        self._base_url = base_url

    async def brief(self, call_id: str, token: str) -> CallBrief:
        """What the call is about, and which agent speaks on it."""
        body = await self._request("GET", f"/internal/calls/{call_id}", token)
        try:
            return CallBrief.model_validate_json(body)
        except ValidationError as error:
            raise Refused(f"not a brief: {error.error_count()} problems") from None

    async def inbound_call(self, token: str, room: InboundRoom) -> Assignment:
        """Which call a caller's room is; ``token`` is the worker's."""
        body = await self._request("POST", "/internal/calls/inbound", token, room.wire())
        try:
            return Assignment.model_validate_json(body)
        except ValidationError as error:
            raise Refused(f"not a call: {error.error_count()} problems") from None

    async def post_events(self, call_id: str, token: str, events: list[CallEvent]) -> bool:
        """Append to the call's timeline; an id that it has already is a no-op there.

        True when the call is over, as far as the gateway knows.
        """
        payload = {"events": [event.wire() for event in events]}
        body = await self._request("POST", f"/internal/calls/{call_id}/events", token, payload)
        try:
            answer = json.loads(body)
        except ValueError:
            return False
        return isinstance(answer, dict) and answer.get("over") is True

    async def transfer(
        self, call_id: str, token: str, order: TransferOrder, within_s: float
    ) -> TransferResult:
        """Have the caller handed over, and wait for the outcome; safe to repeat."""
        path = f"/internal/calls/{call_id}/transfer"
        timeout = aiohttp.ClientTimeout(total=within_s, connect=3)
        body = await self._request("POST", path, token, order.wire(), timeout)
        try:
            return TransferResult.model_validate_json(body)
        except ValidationError as error:
            raise Refused(f"not a result: {error.error_count()} problems") from None

    async def heartbeat(self, token: str, heartbeat: Heartbeat) -> None:
        await self._request("POST", "/internal/workers/heartbeat", token, heartbeat.wire())

    async def _request(
        self,
        method: str,
        path: str,
        token: str,
        payload: dict[str, Any] | None = None,
        timeout: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> bytes:
        try:
            async with self._http.request(
                method,
                self._base_url + path,
                json=payload,
                headers={"Authorization": f"Bearer {token}"},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(type(error).__name__) from None
        if response.status >= 500 or response.status in {408, 425, 429}:
            raise Unavailable(f"HTTP {response.status}")
        if response.status >= 300:
            raise Refused(f"HTTP {response.status}", response.status)
        return body

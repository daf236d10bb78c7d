"""A client of the gateway's internal API, which tells whether a failure is worth a retry."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from pydantic import ValidationError

from core.jobs import Assignment, CallBrief, Heartbeat, InboundRoom
from core.models import CallEvent
from core.recovery import Lost, Replacement
from core.transfers import TransferOrder, TransferResult

# A gateway that hangs must not keep a worker silent for longer than it takes to seem lost.
_HEARTBEAT_TIMEOUT = aiohttp.ClientTimeout(total=2, connect=1)
_LOST_TIMEOUT = aiohttp.ClientTimeout(total=3, connect=1)
_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
# The gateway responds to a transfer request when the human has answered. The request is repeated
# after this long without a response.
_TRANSFER_TIMEOUT = aiohttp.ClientTimeout(total=120, connect=3)


class GatewayError(Exception):
    """Base class of Unavailable and Refused."""


class Unavailable(GatewayError):
    """The gateway is unreachable, overloaded or broken: the same request may succeed later."""


class Refused(GatewayError):
    """The gateway refused the request (401, 404, 422, …): a retry would fail, too."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Gateway:
    """The gateway's internal API. Raises Unavailable or Refused from every method."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str) -> None:
        self._http = http
        self._base_url = base_url

    async def brief(self, call_id: str, token: str) -> CallBrief:
        """Return the call's brief, with its agent."""
        body = await self._request("GET", f"/internal/calls/{call_id}", token)
        try:
            return CallBrief.model_validate_json(body)
        except ValidationError as error:
            raise Refused(f"not a brief: {error.error_count()} problems") from None

    async def inbound_call(self, token: str, room: InboundRoom) -> Assignment:
        """Return the call of a caller's room. ``token`` is the worker's."""
        body = await self._request("POST", "/internal/calls/inbound", token, room.wire())
        try:
            return Assignment.model_validate_json(body)
        except ValidationError as error:
            raise Refused(f"not a call: {error.error_count()} problems") from None

    async def post_events(self, call_id: str, token: str, events: list[CallEvent]) -> bool:
        """Append events to the call's timeline, which ignores ids that it has already.

        Return True if the call is over, as far as the gateway knows.
        """
        payload = {"events": [event.wire() for event in events]}
        body = await self._request("POST", f"/internal/calls/{call_id}/events", token, payload)
        try:
            answer = json.loads(body)
        except ValueError:
            return False
        return isinstance(answer, dict) and answer.get("over") is True

    async def transfer(self, call_id: str, token: str, order: TransferOrder) -> TransferResult:
        """Order a transfer and wait for the outcome. Idempotent."""
        path = f"/internal/calls/{call_id}/transfer"
        body = await self._request("POST", path, token, order.wire(), _TRANSFER_TIMEOUT)
        try:
            return TransferResult.model_validate_json(body)
        except ValidationError as error:
            raise Refused(f"not a result: {error.error_count()} problems") from None

    async def lost(self, call_id: str, token: str, lost: Lost) -> bool:
        """Report that the token's agent is lost; return whether another one comes.

        Raises Unavailable, Refused.
        """
        body = await self._request(
            "POST", f"/internal/calls/{call_id}/lost", token, lost.wire(), _LOST_TIMEOUT
        )
        try:
            return Replacement.model_validate_json(body).comes
        except ValidationError as error:
            raise Unavailable(f"not an answer: {error.error_count()} problems") from None

    async def heartbeat(self, token: str, heartbeat: Heartbeat) -> None:
        await self._request(
            "POST", "/internal/workers/heartbeat", token, heartbeat.wire(), _HEARTBEAT_TIMEOUT
        )

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

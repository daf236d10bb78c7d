"""One call: its state, and what a test does with it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Literal, TypeAlias

from dev.standins.twilio.caller import Caller
from dev.standins.twilio.errors import Alert, Fault
from dev.standins.twilio.media.heard import Heard
from dev.standins.twilio.media.network import Network
from dev.standins.twilio.media.stream import MediaStream
from dev.standins.twilio.outbox import Outbox, Progress
from dev.standins.twilio.services import Services
from dev.standins.twilio.twiml import Method
from dev.standins.twilio.watch import Watch

API_VERSION = "2010-04-01"
FINAL = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})

AfterBreak: TypeAlias = Literal["redirect", "callback"]
"""What Twilio does when a stream's socket breaks: go on with the next verb, or only tell the
stream's status callback and wait for a REST update of the call."""


def new_sid(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


@dataclass(frozen=True)
class Fetch:
    """Go on with the document at a URL."""

    url: str
    method: Method = "POST"
    form: Mapping[str, str] = field(default_factory=dict)
    """Parameters besides the usual ones."""


@dataclass(frozen=True)
class Document:
    """Go on with this TwiML."""

    text: str


@dataclass(frozen=True)
class End:
    """End the call with this status."""

    status: str


Order: TypeAlias = Fetch | Document | End


class Call:
    """A call from its creation to its end; ``heard`` and ``caller`` are those of the far end."""

    def __init__(
        self,
        services: Services,
        account_sid: str,
        from_: str,
        to: str,
        direction: str,
        *,
        network: Network | None = None,
        parent_sid: str | None = None,
    ) -> None:
        self.sid = new_sid("CA")
        self.account_sid, self.from_, self.to = account_sid, from_, to
        self.direction, self.parent_sid = direction, parent_sid
        self.status = "queued"
        self.answered_by: str | None = None
        self.fallback: Fetch | None = None
        """Asked when a document cannot be fetched, or cannot be run."""
        self.network = network or Network()
        self.after_break: AfterBreak = "redirect"
        self.rest_wait_s = 10.0
        """With ``callback``: how long a call without its stream waits for a REST update."""
        self.heard = Heard()
        self.caller = Caller(self)
        self.said: list[str] = []
        """The sentences of <Say>."""
        self.streams: list[MediaStream] = []
        self.dialled: list[Call] = []
        """The calls of <Dial>."""
        self.alerts: list[Alert] = []
        self.outbox = Outbox(self._send)
        self.progress = Progress(self.outbox, None)
        self._services = services
        self._created = datetime.now(UTC)
        self._answered_at: float | None = None
        self._duration_s = 0
        self._orders: list[Order] = []
        self._picked_up = asyncio.Event()
        self._watch = Watch()
        services.calls[self.sid] = self

    # --- For tests

    @property
    def over(self) -> bool:
        return self.status in FINAL

    @property
    def stream(self) -> MediaStream:
        """The stream that the call has now, or had last."""
        assert self.streams, f"no stream yet: {self}"
        return self.streams[-1]

    async def streaming(self, number: int = 1, timeout_s: float = 10) -> MediaStream:
        """Wait for the call's n-th stream: its ``start`` has been sent.

        Raises AssertionError if the call ends before.
        """

        def found() -> MediaStream | None:
            if len(self.streams) >= number:
                return self.streams[number - 1]
            assert not self.over, f"ended without its stream: {self}"
            return None

        return await self._watch.until(found, timeout_s)

    async def ended(self, timeout_s: float = 15) -> str:
        """Wait until the call is over and its callbacks were delivered. Return its status."""
        await self._watch.until(lambda: self.over or None, timeout_s)
        await asyncio.wait_for(self.outbox.delivered(), timeout_s)
        return self.status

    async def reached(self, status: str, timeout_s: float = 10) -> None:
        """Wait until the call has the status. Raises AssertionError if it ends before."""

        def there() -> bool | None:
            if self.status == status:
                return True
            assert not self.over, f"ended before it was {status}: {self}"
            return None

        await self._watch.until(there, timeout_s)

    async def alerted(self, code: int, timeout_s: float = 10) -> Alert:
        """Wait for an alert with the code."""

        def found() -> Alert | None:
            return next((alert for alert in self.alerts if alert.code == code), None)

        return await self._watch.until(found, timeout_s)

    async def dialling(self, number: int = 1, timeout_s: float = 10) -> Call:
        """Wait for the n-th call that <Dial> places."""
        return await self._watch.until(
            lambda: self.dialled[number - 1] if len(self.dialled) >= number else None, timeout_s
        )

    def hang_up(self) -> None:
        """The far end hangs up."""
        self.order(End("completed" if self.answered else "canceled"))

    def pick_up(self) -> None:
        """The callee answers, if ``Answer(after_ms=None)`` waits for it."""
        self._picked_up.set()

    def __repr__(self) -> str:
        alerts = "; ".join(f"{alert.code} {alert.message}" for alert in self.alerts)
        return f"<Call {self.direction} {self.status} {alerts or 'without alerts'}>"

    # --- For the script that the call runs

    @property
    def answered(self) -> bool:
        return self._answered_at is not None

    def answer(self) -> None:
        if not self.answered:
            self._answered_at = asyncio.get_running_loop().time()
            self.become("in-progress")

    def since_answer_ms(self) -> float:
        assert self._answered_at is not None
        return (asyncio.get_running_loop().time() - self._answered_at) * 1000

    def become(self, status: str) -> None:
        self.status = status
        if status in FINAL:
            self._duration_s = round(self.since_answer_ms() / 1000) if self.answered else 0
            self.caller.ended()
        self._watch.changed()

    def changed(self) -> None:
        self._watch.changed()

    def order(self, order: Order) -> None:
        """Interrupt what the call does: the last order counts, but nothing after an end."""
        if not any(isinstance(each, End) for each in self._orders):
            self._orders.append(order)
            self._watch.changed()

    async def ordered(self, timeout_s: float = 1e6) -> Order:
        """Wait for the next order."""

        await self._watch.until(lambda: self._orders or None, timeout_s)
        order = self._orders[-1]
        self._orders.clear()
        return order

    async def picked_up(self) -> None:
        await self._picked_up.wait()

    def alert(self, fault: Fault) -> None:
        alert = Alert(fault.code, fault.message, self.sid)
        self.alerts.append(alert)
        self._services.alerts.append(alert)
        self._watch.changed()

    def form(self) -> dict[str, str]:
        """Return the parameters of every request about this call."""
        form = {
            "AccountSid": self.account_sid,
            "ApiVersion": API_VERSION,
            "CallSid": self.sid,
            "CallStatus": self.status,
            "Called": self.to,
            "Caller": self.from_,
            "Direction": self.direction,
            "From": self.from_,
            "To": self.to,
        }
        if self.answered_by is not None:
            form["AnsweredBy"] = self.answered_by
        if self.parent_sid is not None:
            form["ParentCallSid"] = self.parent_sid
        return form

    @property
    def duration_s(self) -> int:
        return self._duration_s

    def resource(self) -> dict[str, Any]:
        """Return the call as the REST API shows it."""
        uri = f"/{API_VERSION}/Accounts/{self.account_sid}/Calls/{self.sid}"
        created = format_datetime(self._created)
        return {
            "sid": self.sid,
            "account_sid": self.account_sid,
            "api_version": API_VERSION,
            "answered_by": self.answered_by,
            "date_created": created,
            "date_updated": created,
            "direction": self.direction,
            "duration": str(self._duration_s) if self.over else None,
            "from": self.from_,
            "parent_call_sid": self.parent_sid,
            "price": None,
            "price_unit": "USD",
            "status": self.status,
            "to": self.to,
            "uri": f"{uri}.json",
            "subresource_uris": {},
        }

    async def _send(self, url: str, form: Mapping[str, str], method: str) -> None:
        try:
            await self._services.webhooks.send(self.account_sid, url, form, method)
        except Fault as fault:
            self.alert(fault)

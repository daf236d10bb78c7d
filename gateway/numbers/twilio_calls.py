"""Calls by Twilio's REST API: place one, find it again, redirect it, hang up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from twilio.base.exceptions import TwilioRestException  # type: ignore[import-untyped]

from gateway.numbers.twilio import NotThere, TwilioAccount, translated

STATUS_EVENTS = ("initiated", "ringing", "answered", "completed")

# https://www.twilio.com/docs/api/errors: the number is invalid, or cannot be called at all.
_NO_SUCH_NUMBER = frozenset({21211, 21214, 21217, 21401})
# The call is not in progress (any more).
_NOT_IN_PROGRESS = 21220
_RECENT = 100


@dataclass(frozen=True, slots=True)
class TwilioCall:
    """A call as Twilio knows it. ``status`` is one of Twilio's CallStatus values."""

    sid: str
    status: str
    created_at: datetime | None
    answered_by: str | None


class InvalidDestination(Exception):
    """Twilio does not take the number."""


class CallOver(Exception):
    """The call is not in progress."""


class TwilioCalls(TwilioAccount):
    """Methods raise what TwilioAccount's do. Unavailable leaves the outcome unknown."""

    async def place_call(
        self,
        *,
        to: str,
        from_: str,
        url: str,
        fallback_url: str,
        status_url: str,
        ringing_s: int,
        machine_url: str | None,
    ) -> TwilioCall:
        """Call a number; ``url`` is asked for TwiML on answer. Raises InvalidDestination.

        ``fallback_url`` is asked whenever the call's TwiML cannot be fetched, also later.

        ``machine_url``: Twilio listens for an answering machine, beside the TwiML, and reports it.
        """
        detection: dict[str, Any] = {}
        if machine_url is not None:
            # Without AsyncAmd, the callee would hear nothing until Twilio has decided (seconds).
            detection = {
                "machine_detection": "Enable",
                "async_amd": "true",
                "async_amd_status_callback": machine_url,
            }
        with translated(), _codes(_NO_SUCH_NUMBER, InvalidDestination):
            return _call(
                await self.client.calls.create_async(
                    to=to,
                    from_=from_,
                    url=url,
                    fallback_url=fallback_url,
                    status_callback=status_url,
                    status_callback_event=list(STATUS_EVENTS),
                    timeout=ringing_s,
                    **detection,
                )
            )

    async def call(self, sid: str) -> TwilioCall | None:
        """Return the call; None: the account has no such call."""
        with contextlib.suppress(NotThere), translated():
            return _call(await self.client.calls(sid).fetch_async())
        return None

    async def calls(self, *, to: str, from_: str, since: datetime) -> list[TwilioCall]:
        """Return the account's newest calls between two numbers that are not older."""
        with translated():
            # Not filtered by StartTime: a call that is queued or rings has none yet.
            found = await self.client.calls.list_async(to=to, from_=from_, limit=_RECENT)
            calls = [_call(each) for each in found]
        return [call for call in calls if call.created_at is None or call.created_at >= since]

    async def run_twiml(self, sid: str, twiml: str) -> None:
        """Let the live call go on with ``twiml``. Raises CallOver, NotThere."""
        with translated(), _codes({_NOT_IN_PROGRESS}, CallOver):
            await self.client.calls(sid).update_async(twiml=twiml)

    async def hang_up(self, sid: str) -> None:
        """End the call, whether it rings or was answered; one that is over is fine."""
        with contextlib.suppress(NotThere, CallOver):
            with translated(), _codes({_NOT_IN_PROGRESS}, CallOver):
                await self.client.calls(sid).update_async(status="completed")


def _call(found: Any) -> TwilioCall:
    return TwilioCall(found.sid, found.status, found.date_created, found.answered_by or None)


@contextlib.contextmanager
def _codes(codes: frozenset[int] | set[int], error: type[Exception]) -> Iterator[None]:
    """Translate Twilio's errors with these codes."""
    try:
        yield
    except TwilioRestException as raised:
        if raised.code in codes:
            raise error(str(raised.code)) from None
        raise

"""The ways in which a call ends, and the errors for code that waits on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class CallRefused(Exception):
    """The far end refused our INVITE or did not respond to it.

    Attributes:
        status: The SIP status; None without a response (or if the wait was cancelled).
        reason: The reason phrase, or a description of the error.
    """

    def __init__(self, status: int | None, reason: str) -> None:
        super().__init__(f"{status or 'no answer'} {reason}".strip())
        self.status = status
        self.reason = reason


class CallEnded(Exception):
    """The call ended before the awaited event."""


@dataclass(frozen=True)
class Ended:
    """The end of a call.

    Attributes:
        by: The side that ended it (for a transfer: ``local`` if this phone asked for it).
        how: ``cancel`` by the caller before the answer, ``refused`` by the callee before
            the answer, ``bye`` after it, ``transfer`` if another call replaced it,
            ``error`` if the far end could not be reached or was lost.
        status: The SIP status of a refusal.
        reason: The phrase of a refusal, else the Reason header of the far end's BYE or
            CANCEL (RFC 3326), else baresip's text.
    """

    by: Literal["local", "remote"]
    how: Literal["bye", "cancel", "refused", "transfer", "error"]
    status: int | None
    reason: str

"""How calls of a :class:`dev.phone.Phone` end, and what that means to whoever waits for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class CallRefused(Exception):
    """The far end refused our INVITE, or it never got an answer.

    Attributes:
        status: The SIP status; None if nothing came back (or the wait was canceled).
        reason: Its phrase, or what went wrong.
    """

    def __init__(self, status: int | None, reason: str) -> None:
        super().__init__(f"{status or 'no answer'} {reason}".strip())
        self.status = status
        self.reason = reason


class CallEnded(Exception):
    """The call was over before what was waited for."""


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        by: Which side ended it (of a transfer: ``local`` if this phone asked for it).
        how: ``cancel`` before the answer by the caller, ``refused`` before the answer by
            the called side, ``bye`` after it, ``transfer`` when another call took its
            place, ``error`` when the far end could not be reached or was lost.
        status: The SIP status of a refusal.
        reason: Its phrase, else the Reason header of the far end's BYE or CANCEL
            (RFC 3326), else what baresip says.
    """

    by: Literal["local", "remote"]
    how: Literal["bye", "cancel", "refused", "transfer", "error"]
    status: int | None
    reason: str

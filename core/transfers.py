"""Messages between worker and gateway about transferring a caller to a human."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from core.models import Model

Outcome = Literal[
    "transferred",  # cold: the caller is with the human
    "answered",  # warm: the human has picked up, and is in the caller's room
    "busy",
    "no_answer",
    "rejected",
    "invalid_destination",
    "not_allowed",
    "not_supported",  # on this kind of call, or without the account's credential
    "failed",
]


TRANSFER_ID = r"^trf_[0-9a-f]{24}$"


class TransferOrder(Model):
    """The body of ``POST /internal/calls/{id}/transfer``; idempotent by ``transfer_id``."""

    transfer_id: str = Field(pattern=TRANSFER_ID)


class TransferResult(Model):
    """The outcome of a transfer; ``identity`` is that of the human in the room, if there is one."""

    outcome: Outcome
    identity: str | None = None
    sip_status_code: int | None = None
    sip_reason: str | None = None


HUMAN_PREFIX = "transfer-"


def human_identity(transfer_id: str) -> str:
    """Return the human's participant identity in the caller's room."""
    return f"{HUMAN_PREFIX}{transfer_id.removeprefix('trf_')}"


def failure(
    reason: str, *, sip_status_code: int | None = None, sip_reason: str | None = None
) -> dict[str, Any]:
    """Build the data of a ``transfer.failed`` event."""
    data: dict[str, Any] = {"reason": reason}
    if sip_status_code is not None:
        data["sipStatusCode"] = sip_status_code
    if sip_reason:
        data["sipReason"] = sip_reason
    return data

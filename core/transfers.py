"""Handing a caller over to a human: what worker and gateway say to each other about it."""

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
    "failed",
]


class TransferOrder(Model):
    """``POST /internal/calls/{id}/transfer``; the same id again asks after the same transfer."""

    transfer_id: str = Field(pattern=r"^trf_[0-9a-f]{24}$")


class TransferResult(Model):
    """What became of it; ``identity`` is the human's in the room, when there is one."""

    outcome: Outcome
    identity: str | None = None
    sip_status_code: int | None = None
    sip_reason: str | None = None


HUMAN_PREFIX = "transfer-"


def human_identity(transfer_id: str) -> str:
    """Who the human is in the caller's room."""
    return f"{HUMAN_PREFIX}{transfer_id.removeprefix('trf_')}"


def failure(
    reason: str, *, sip_status_code: int | None = None, sip_reason: str | None = None
) -> dict[str, Any]:
    """The data of a ``transfer.failed`` event."""
    data: dict[str, Any] = {"reason": reason}
    if sip_status_code is not None:
        data["sipStatusCode"] = sip_status_code
    if sip_reason:
        data["sipReason"] = sip_reason
    return data

"""How a call is recorded, as its worker is told."""

from __future__ import annotations

from datetime import datetime

from core.recordings.config import Format, Region
from core.shapes import Model


class RecordingPlan(Model):
    """``key``: the object's name in the store of ``region``, with its suffix."""

    key: str
    format: Format = "wav"
    region: Region | None = None
    after_transfer: bool = False
    part: int = 0
    """Each agent of a call records a part of its own (core.recovery): its epoch."""


def object_key(
    call_id: str, auth_id: str | None, created_at: datetime, format: Format, part: int = 0
) -> str:
    """Return ``tenant/2026/01/31/call_….wav``, and ``….part1.wav`` of the second agent.

    The operator's own calls are under ``_``.

    A tenant's id is any text, so characters other than letters, digits, ``-`` and ``_`` are written
    as ``~`` and the hexadecimal bytes of their UTF-8: different tenants have different keys.
    """
    tenant = "_" if auth_id is None else "t-" + "".join(map(_safe, auth_id))
    name = f"{call_id}.part{part}" if part else call_id
    return f"{tenant}/{created_at:%Y/%m/%d}/{name}.{format}"


def _safe(character: str) -> str:
    if character.isascii() and (character.isalnum() or character in "-_"):
        return character
    return "".join(f"~{byte:02x}" for byte in character.encode())

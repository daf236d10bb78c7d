"""A call's gate and its control, with the events that they post."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.models import CallEvent
from worker.privacy.control import RecordingControl
from worker.privacy.gate import Gate


class Masked:
    """``now_ms`` is the call's clock."""

    def __init__(
        self, post: Callable[[str, dict[str, Any]], object] | None = None, tail_s: float = 0
    ) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.deaf: list[bool] = []
        self.now_ms = 0
        self.gate = Gate(self._event, lambda: self.now_ms)
        self.control = RecordingControl(self.gate, post=post or self._event, tail_s=tail_s)
        self.control.deafened.append(self.deaf.append)

    @property
    def types(self) -> list[str]:
        return [type.removeprefix("recording.") for type, _ in self.events]

    def _event(self, type: str, data: dict[str, Any]) -> CallEvent:
        self.events.append((type, data))
        return CallEvent(type=type, data=data)

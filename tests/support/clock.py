"""A clock that a test moves forward."""

from __future__ import annotations

from datetime import datetime, timedelta

from core.models import now


class Clock:
    """Tells the time of day, plus the time by which the test has moved it forward."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return now() + self._ahead

    def forward(self, by: timedelta) -> None:
        self._ahead += by

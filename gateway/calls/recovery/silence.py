"""Which workers are silent: their heartbeats have stopped, by our own clock alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

_GAP_S = 2.0


@dataclass(frozen=True, slots=True)
class _Seen:
    at: datetime | None
    since: float


class Silence:
    """Compares each worker's last heartbeat with the one of the look before.

    Heartbeats are stored with the time of the gateway that took them, and the clocks of gateways
    differ. So only whether they change counts. After a time without looks (this process was
    frozen, the database was away) heartbeats may have been lost, too, and all workers get the
    whole time again.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._looked = 0.0
        self._seen: dict[str, _Seen] = {}

    def look(self, beats: Mapping[str, datetime | None], moment: float) -> list[str]:
        """Take the workers' last heartbeats, and return the workers that are silent.

        ``moment``: of a monotonic clock, in seconds.
        """
        if moment - self._looked > _GAP_S:
            self._seen.clear()
        self._looked = moment
        self._seen = {
            worker: known
            if (known := self._seen.get(worker)) is not None and known.at == at
            else _Seen(at, moment)
            for worker, at in beats.items()
        }
        return [
            worker for worker, seen in self._seen.items() if moment - seen.since >= self._after_s
        ]

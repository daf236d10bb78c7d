"""What a job says to its worker's main process, one line of JSON at a time, through a pipe.

A pipe keeps the lines in order and drops none: a datagram socket takes no more than ten when the
main process stands still. A write of up to 4 KiB is atomic, so that all jobs can share one pipe.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Literal

Says = Literal["alive", "hung", "over"]


@dataclass(frozen=True, slots=True)
class Beat:
    """``call_id`` is None while the job does not know its call. ``seen_at`` is the last sign of
    life, in Unix seconds. ``detail`` says what hangs."""

    says: Says
    pid: int
    job_id: str
    call_id: str | None
    epoch: int
    seen_at: float
    detail: str = ""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class Pulses:
    """The main process's end. Job processes get ``told`` when they are started."""

    def __init__(self) -> None:
        self._hearing, self.told = multiprocessing.Pipe(duplex=False)
        # A flag of the pipe itself, so that it holds in the job processes, too. A job must not
        # wait for a main process that stands still.
        os.set_blocking(self.told.fileno(), False)
        os.set_blocking(self._hearing.fileno(), False)
        self._rest = b""

    def fileno(self) -> int:
        return self._hearing.fileno()

    def read(self) -> Iterator[Beat]:
        """Yield what the jobs have said since the last call."""
        try:
            while data := os.read(self.fileno(), 65536):
                *lines, self._rest = (self._rest + data).split(b"\n")
                yield from (Beat(**json.loads(line)) for line in lines)
        except BlockingIOError:
            return

    def close(self) -> None:
        self._hearing.close()
        self.told.close()


def tell(told: Connection, beat: Beat) -> bool:
    """Write to the main process; return False if it does not read: 64 KiB wait. A main process
    that is gone need not be told."""
    try:
        os.write(told.fileno(), beat.line())
    except BlockingIOError:
        return False
    except BrokenPipeError:
        pass
    return True

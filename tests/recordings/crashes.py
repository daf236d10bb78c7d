"""A process that forks processes that record and upload, and kills them.

``kill FOLDER OBJECTS FORMAT SEED COUNT FRAMES PUT_S`` prints one line of JSON per killed recording.
``sweep FOLDER COUNT`` has three processes upload recordings at the same time. It forks, because
starting Python fifty times over would take most of the time. The environment has the settings of
the store, whose objects are the files in ``OBJECTS``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core.models import CallEvent
from core.recordings.plan import RecordingPlan
from core.settings import Settings
from recordings.spool import RecordingFile, leftovers
from recordings.stores import Stores
from recordings.upload import Sweeper
from recordings.wav import Frames

FRAMES = 40_000
BLOCKS = 25
STEPS = {"record": 0.06, "encode": 0.4, "put": 0.02, "report": 0.0005, "remove": 0.0003}
"""The steps of a recording, and about how many seconds each takes."""


def audio(seed: int, frames: int = FRAMES) -> Frames:
    return np.random.default_rng(seed).integers(-9000, 9000, (frames, 2), dtype=np.int16)


class Case:
    """One call. ``acknowledged`` is what ``append`` had returned for; ``timeline`` has the events
    that arrived, duplicates included."""

    def __init__(self, folder: Path, seed: int, plan: RecordingPlan, frames: int = FRAMES) -> None:
        self.seed, self.plan, self.call_id = seed, plan, f"call_{seed}"
        self.frames = frames
        self.spool = folder / f"spool_{seed}"
        self.timeline = folder / f"{seed}.timeline"
        self.acknowledged = folder / f"{seed}.acknowledged"
        self.stop_at: str | None = None
        self._settings = Settings(data_dir=folder)

    def record(self) -> None:
        self.at("record")
        file = RecordingFile.create(self.spool, self.call_id, self.plan)
        for block in np.split(audio(self.seed, self.frames), BLOCKS):
            file.append(block)
            self.acknowledged.write_text(str(file.frames))
            time.sleep(0.001)
        file.close()

    def at(self, step: str) -> None:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)  # whoever kills this process wakes it

    async def report(self, call_id: str, event: CallEvent) -> None:
        self.at("report")
        with self.timeline.open("a") as file:
            file.write(json.dumps(event.wire()) + "\n")
        self.at("remove")

    def half(self, objects: Path) -> bool:
        """Return whether there is an object that is not the whole file."""
        stored, file = objects / self.plan.key, self.spool / f"{self.call_id}.{self.plan.format}"
        if not stored.exists() or not file.exists():  # it is removed after the upload
            return False
        return stored.read_bytes() != file.read_bytes()

    async def upload(self) -> None:
        self.at("encode" if self.plan.format == "ogg" else "put")
        sweeper = Sweeper(self.spool, Stores.from_settings(self._settings), self.report)
        for path in self.spool.glob("*.new"):
            os.utime(path, (0, 0))  # an hour later
        while leftovers(self.spool) or [*self.spool.glob("*.done"), *self.spool.glob("*.new")]:
            await sweeper.sweep()
            await asyncio.sleep(0.01)


def forked(run: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        run()
        os._exit(0)
    except BaseException:
        logging.exception("a forked process failed")
        os._exit(1)


def plan_of(number: int, format: str) -> RecordingPlan:
    return RecordingPlan.model_validate({"key": f"_/call_{number}.{format}", "format": format})


def sweep(folder: Path, count: int) -> None:
    cases = [Case(folder, number, plan_of(number, "wav")) for number in range(count)]
    for case in cases:
        case.spool = folder / "spool"
        case.timeline = folder / "timeline"
        case.record()
    children = [forked(lambda: asyncio.run(cases[0].upload())) for _ in range(3)]
    sys.exit(sum(os.waitpid(child, 0)[1] for child in children))


def kill(
    folder: Path, objects: Path, format: str, seed: int, count: int, frames: int, put_s: float
) -> None:
    rng = random.Random(seed)
    seconds = STEPS | {"put": put_s}
    if format != "ogg":
        del seconds["encode"]
    for number in range(seed, seed + count):
        case = Case(folder, number, plan_of(number, format), frames)

        def whole(case: Case = case) -> None:
            case.record()
            asyncio.run(case.upload())

        # The step is chosen first, since recording takes longer than all the others together.
        # The upload has the most to go wrong.
        case.stop_at = step = rng.choice([*seconds, "put", "put"])
        child = forked(whole)
        status = os.waitpid(child, os.WUNTRACED)[1]
        if os.WIFSTOPPED(status):
            os.kill(child, signal.SIGCONT)
            time.sleep(seconds[step] * rng.random())
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        acknowledged = int(case.acknowledged.read_text() or 0) if case.acknowledged.exists() else 0
        half = case.half(objects)
        case.stop_at = None
        sweeper = forked(lambda case=case: asyncio.run(case.upload()))  # type: ignore[misc]
        result = {
            "seed": number,
            "step": step if os.WIFSIGNALED(status) else "none, it was done",
            "acknowledged": acknowledged,
            "half": half,
            "status": os.waitpid(sweeper, 0)[1],
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.CRITICAL)
    if sys.argv[1] == "kill":
        folder, objects, format, seed, count, frames, put_s = sys.argv[2:]
        kill(Path(folder), Path(objects), format, int(seed), int(count), int(frames), float(put_s))
    else:
        sweep(Path(sys.argv[2]), int(sys.argv[3]))

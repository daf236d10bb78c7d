"""A process that forks processes that record and upload, and kills them.

``kill FOLDER FORMAT SEED COUNT`` prints one line of JSON per killed recording. ``sweep FOLDER
COUNT`` has three processes upload recordings at the same time. It forks, because starting Python
fifty times over would take most of the time.
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

BLOCK = 1600
BLOCKS = 25
STEPS = {"record": 0.06, "encode": 0.4, "put": 0.02, "report": 0.001, "remove": 0.001}
"""The steps of a recording, and about how many seconds each takes."""


def audio(seed: int) -> Frames:
    return np.random.default_rng(seed).integers(-9000, 9000, (BLOCKS * BLOCK, 2), dtype=np.int16)


class Case:
    """One call. ``acknowledged`` is what ``append`` had returned for; ``timeline`` has the events
    that arrived, duplicates included."""

    def __init__(self, folder: Path, seed: int, plan: RecordingPlan) -> None:
        self.seed, self.plan, self.call_id = seed, plan, f"call_{seed}"
        self.spool = folder / f"spool_{seed}"
        self.timeline = folder / f"{seed}.timeline"
        self.acknowledged = folder / f"{seed}.acknowledged"
        self.step = folder / f"{seed}.step"
        self._settings = Settings(data_dir=folder, recordings_url=f"file://{folder}/store")

    def record(self) -> None:
        self.at("record")
        file = RecordingFile.create(self.spool, self.call_id, self.plan)
        for block in np.split(audio(self.seed), BLOCKS):
            file.append(block)
            self.acknowledged.write_text(str(file.frames))
            time.sleep(0.001)
        file.close()

    def at(self, step: str) -> None:
        self.step.write_text(step)

    async def report(self, call_id: str, event: CallEvent) -> None:
        self.at("report")
        with self.timeline.open("a") as file:
            file.write(json.dumps(event.wire()) + "\n")
        self.at("remove")

    async def upload(self) -> None:
        self.at("encode" if self.plan.format == "ogg" else "put")
        sweeper = Sweeper(self.spool, Stores.from_settings(self._settings), self.report)
        while leftovers(self.spool) or list(self.spool.glob("*.done")):
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


def kill(folder: Path, format: str, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for number in range(seed, seed + count):
        case = Case(folder, number, plan_of(number, format))

        def whole(case: Case = case) -> None:
            case.record()
            asyncio.run(case.upload())

        # The step is chosen first, since recording takes longer than all the others together.
        steps = [step for step in STEPS if step != "encode" or format == "ogg"]
        step = rng.choice(steps)
        after = STEPS[step] * rng.random()
        child = forked(whole)
        while not (ended := os.waitpid(child, os.WNOHANG)[0]):
            if case.step.exists() and case.step.read_text() == step:
                time.sleep(after)
                break
            time.sleep(0)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        acknowledged = int(case.acknowledged.read_text() or 0) if case.acknowledged.exists() else 0
        reached = case.step.read_text() if case.step.exists() else "record"
        sweeper = forked(lambda case=case: asyncio.run(case.upload()))  # type: ignore[misc]
        status = os.waitpid(sweeper, 0)[1]
        result = {"seed": number, "step": reached, "acknowledged": acknowledged, "status": status}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.CRITICAL)
    if sys.argv[1] == "kill":
        kill(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        sweep(Path(sys.argv[2]), int(sys.argv[3]))

"""The worker's import order; only the modules behind the line may use rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_imports import ROOT, imported, is_within, module_of

pytestmark = pytest.mark.repo

# From the top: a module imports from its own folder and from later lines only.
ORDER = (
    {"__main__"},
    {"server", "streams"},
    {"preload"},
    {"entrypoint", "presence"},
    {"call", "room"},
    {"takeover", "departure"},
    {"handover", "brains"},
    {"recording", "tools"},
    {"machines", "opening"},
    {"voice"},
    {"privacy"},
    {"timing", "line", "job", "pulse"},
    {"link", "drain", "endings", "silence", "_private"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# These may use rooms: the room line, and the modules that take LiveKit's jobs.
ROOMS = {"room", "entrypoint", "server", "preload", "__main__"}
PATHS = sorted(path for path in (ROOT / "worker").rglob("*.py") if module_of(path) != "worker")
BELOW_THE_LINE = [path for path in PATHS if module_of(path).split(".")[1] not in ROOMS]


def part(module: str) -> str | None:
    """Return the worker's folder or module that ``module`` is or is in; None if there is none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "worker" and len(parts) > 1 else None


def against_the_order(source: str, own: str) -> set[str]:
    return {
        module
        for module in imported(ast.parse(source))
        if (other := part(module)) in RANK and other != own and RANK[other] <= RANK[own]
    }


def of_rooms(source: str) -> Iterator[str]:
    """Yield a module's uses of rooms. Of ``livekit.rtc``, only audio frames are allowed."""
    tree = ast.parse(source)
    for module in imported(tree):
        if any(is_within(module, package) for package in ("worker.room", "livekit.api")):
            yield module
        elif is_within(module, "livekit.rtc") and module != "livekit.rtc":
            yield module
        elif module.rpartition(".")[2] in {"JobContext", "get_job_context", "room_io"}:
            yield module
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("rtc.") and name != "rtc.AudioFrame":
                yield name


@pytest.mark.parametrize("path", PATHS, ids=module_of)
def test_the_workers_folders_import_downwards(path: Path) -> None:
    own = part(module_of(path))
    assert own in RANK
    assert not against_the_order(path.read_text(), own)


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("from worker.room.line import RoomLine", "call"),
        ("from worker.call import Call", "room"),
        ("from worker.brains import hosted", "voice"),
        ("def f():\n    import worker.server", "link"),
    ],
)
def test_an_import_against_the_order_is_seen(source: str, own: str) -> None:
    assert against_the_order(source, own)


def test_the_call_is_below_the_line() -> None:
    assert {"worker.call", "worker.line", "worker.voice.conversation"} <= set(
        map(module_of, BELOW_THE_LINE)
    )


@pytest.mark.parametrize("path", BELOW_THE_LINE, ids=module_of)
def test_rooms_are_known_behind_the_line_only(path: Path) -> None:
    assert not set(of_rooms(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "from worker.room.far_end import FarEnd",
        "from livekit import api",
        "from livekit.rtc import Room",
        "from livekit.agents import JobContext",
        "from livekit.agents.voice import room_io",
        "from livekit import rtc\ndef f(room: rtc.Room): ...",
        "from livekit import rtc\ntry: ...\nexcept rtc.participant.PublishTrackError: ...",
    ],
)
def test_what_knows_a_room_is_seen(source: str) -> None:
    assert set(of_rooms(source))


def test_a_frame_of_audio_is_no_room() -> None:
    assert not set(of_rooms("from livekit import rtc\nframe: rtc.AudioFrame"))


def test_a_call_loads_no_room_line() -> None:
    code = "import sys, worker.call; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = run.stdout.split()
    assert "worker.line" in loaded
    assert {"worker.room", "worker.entrypoint"}.isdisjoint(loaded)

"""The verdict on a soak: growth that misses the goal, and growth that fails the run."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from dev.bench.endurance.samples import Sample, held_by
from dev.bench.endurance.verdict import SETTLED, Judged, judge, judge_latency, judge_number

pytestmark = pytest.mark.unit

Series = Callable[[int], float]


def samples(**changed: Series) -> list[Sample]:
    """Return eight samples without calls, 100 calls apart. ``changed``: values by moment 0 to 7."""
    steady = {
        "gateway, RSS (MiB)": 90.0,
        "gateway, PSS (MiB)": 60.0,
        "gateway, files": 30.0,
        "gateway, tasks": 9.0,
        "job processes": 3.0,
        **dict.fromkeys(SETTLED, 0.0),
    }
    names = {_key(name): name for name in steady}
    return [
        Sample(
            at_s=60.0 * moment,
            calls=100 * moment,
            values=steady | {names[key]: series(moment) for key, series in changed.items()},
        )
        for moment in range(8)
    ]


def _key(name: str) -> str:
    """Return ``gateway, RSS (MiB)`` as a keyword."""
    return "_".join(re.findall(r"\w+", name)).lower()


def only(judged: list[Judged], name: str) -> Judged:
    (found,) = [line for line in judged if line.name == name]
    return found


def others(judged: list[Judged], name: str) -> list[Judged]:
    return [line for line in judged if line.name != name]


def test_nothing_that_stands_still_grows() -> None:
    judged = judge(samples())
    assert {line.name for line in judged} == {
        "gateway, RSS",
        "gateway, files",
        "gateway, tasks",
        "job processes",
        *SETTLED,
    }
    assert not any(line.grows or line.failure for line in judged)


@pytest.mark.parametrize("name", ["gateway, files", "gateway, tasks", "job processes"])
def test_one_more_of_anything_for_each_round_fails(name: str) -> None:
    judged = judge(samples(**{_key(name): lambda moment: 20.0 + moment}))
    assert only(judged, name).grows and only(judged, name).failure.startswith(name)
    assert not any(line.grows for line in others(judged, name))


def test_numbers_that_go_up_and_down_do_not_grow() -> None:
    judged = judge(samples(gateway_files=lambda moment: 30.0 + 5 * (moment % 2)))
    assert not any(line.grows for line in judged)


def test_memory_that_leaks_with_every_call_fails() -> None:
    """0.1 MiB a call are 50 MiB over 500."""
    line = only(judge(samples(gateway_rss_mib=lambda moment: 90.0 + 10 * moment)), "gateway, RSS")
    assert line.grows and "50 MiB" in line.failure
    assert line.growth == "+50.0 MiB (+50.0 to +50.0)"


def test_memory_that_grows_below_the_limit_is_told_and_holds() -> None:
    judged = judge(samples(gateway_rss_mib=lambda moment: 90.0 + moment))
    line = only(judged, "gateway, RSS")
    assert not line.grows and not line.failure
    assert line.growth == "+5.0 MiB (+5.0 to +5.0)" and line.limit == "+10 MiB"


def test_memory_that_may_be_noise_fails_no_run() -> None:
    """The slope misses the goal, but its interval includes zero."""
    wave = [90.0, 130, 80, 140, 85, 150, 95, 145]
    line = only(judge(samples(gateway_rss_mib=lambda moment: wave[moment])), "gateway, RSS")
    assert line.grows and not line.failure


def test_memory_that_grows_fast_but_little_fails_no_run() -> None:
    """A short run grows by 3.5 MiB over 70 calls, which would be 25 MiB over 500."""
    many = samples(gateway_rss_mib=lambda moment: 90.0 + moment / 2)
    judged = judge([replace(sample, calls=sample.calls // 10) for sample in many])
    line = only(judged, "gateway, RSS")
    assert line.grows and not line.failure


def test_a_room_that_is_left_once_fails() -> None:
    line = only(judge(samples(rooms=lambda moment: float(moment == 3))), "rooms")
    assert line.grows and line.failure == "rooms: 1 left after all calls had ended"


def test_latency_misses_the_goal_but_fails_no_run() -> None:
    slower = judge_latency("turn", [700.0] * 10 + [900.0] * 10)
    assert slower.grows and not slower.failure and slower.growth == "1.29 ×"
    assert not judge_latency("turn", [700.0] * 10 + [790.0] * 10).grows


def test_a_lost_call_fails() -> None:
    assert judge_number("calls lost", 1, 0).failure == "calls lost: 1, not 0"
    assert not judge_number("calls lost", 0, 0).failure


def test_a_process_is_looked_at() -> None:
    before = held_by({"gateway": os.getpid()})
    with contextlib.ExitStack() as opened:
        for _ in range(4):
            opened.enter_context(open(os.devnull))
        after = held_by({"gateway": os.getpid()})
    assert after["gateway, files"] == before["gateway, files"] + 4
    assert 1 < after["gateway, PSS (MiB)"] <= after["gateway, RSS (MiB)"]
    assert after["gateway, threads"] >= 1

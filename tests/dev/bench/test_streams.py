"""The benchmarks of streams: their tables and verdicts, and the call that they measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from dev.bench.climb import Climb, Limit, race
from dev.bench.held import Held, Turn
from dev.bench.streams import goals, ladder, turns
from dev.bench.streams.sides import BARE, OURS, PIPECAT, PIPECAT_UNTUNED, STREAMS
from dev.bench.streams.voice_urls import VoiceUrls, connecting
from dev.bench.turn import Taken
from dev.bench.usage import MACHINE, PHONE

pytestmark = pytest.mark.unit


def taken(name: str, turn_ms: float, silence_ms: float = 180.0) -> Taken:
    return Taken(name, [[turn_ms, turn_ms + 20], [turn_ms]], [silence_ms], [400.0], 1)


def sides(ours_ms: float) -> list[Taken]:
    theirs = [taken(BARE, 560.0), taken(PIPECAT, 800.0), taken(PIPECAT_UNTUNED, 900.0)]
    return [taken(OURS, ours_ms), *theirs]


def test_a_goal_says_whether_it_was_reached() -> None:
    assert goals.at_most("turn", 640, 640.0, " ms") == "turn ≤ 640 ms: reached, 640 ms"
    assert goals.at_most("turn", 640, 641.0, " ms") == "turn ≤ 640 ms: missed, 641 ms"
    assert goals.at_least("held", 20, 20) == "held ≥ 20: reached, 20"
    assert goals.at_least("held", 20, 18) == "held ≥ 20: missed, 18"
    assert goals.at_most("first", 1500, 1234.0, " ms").endswith("1234 ms")


class TestTurns:
    def test_each_side_has_its_rows_and_goals_a_verdict(self, tmp_path: Path) -> None:
        found = turns.section(sides(600.0), sides(850.0), "1.14")
        assert [row[0] for row in found.rows] == [
            *(side.name for side in sides(0)),
            *(f"{side.name}, realistic delays" for side in sides(0)),
        ]
        assert all(len(row) == len(found.columns) for row in found.rows)
        assert "turn p50 ≤ 640 ms: reached, 600 ms" in found.notes[0]
        assert "turn p50 ÷ Pipecat's ≤ 0.8: reached, 0.75" in found.notes[0]
        assert "0.75" in found.notes[1] and "0.67" in found.notes[1]
        found.save(tmp_path, "a day")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["streams.json", "streams.svg"]

    def test_a_miss_is_called_one(self) -> None:
        slow = [replace(side, silences=[220.0]) for side in sides(700.0)]
        (goals_note, *_) = turns.section(slow, sides(950.0), "1.14").notes
        assert "turn p50 ≤ 640 ms: missed" in goals_note
        assert "÷ Pipecat's ≤ 0.8: missed" in goals_note
        assert "barge-in p50 ≤ 200 ms: missed" in goals_note
        assert "at realistic delays ≤ 900 ms: missed" in goals_note

    def test_without_a_side_there_is_no_verdict(self) -> None:
        found = turns.section(sides(600.0)[1:], [Taken(BARE)], "1.14")
        assert found.notes[0].startswith("Goals are not judged")
        assert len(found.rows) == 3


def held(calls: int, cpu: float, *, took_ms: float = 600.0, mib: float = 5.0) -> Held:
    cores = {"gateway": 0.004 * calls, STREAMS: (cpu - 0.004) * calls, PHONE: 0.1, MACHINE: 1.5}
    return Held(
        calls, [Turn(took_ms, 0.0)], cores, 90.0, 90.0 + mib * calls, [1.0], ("gateway", STREAMS)
    )


def climb(name: str, most: int, cpu: float) -> Climb:
    levels = {calls: held(calls, cpu) for calls in range(4, most + 1, 4)}
    return Climb(name, most, levels | {most + 4: held(most + 4, cpu, took_ms=900.0)})


class TestHeld:
    def test_the_goals_have_a_verdict(self) -> None:
        found = ladder.section([climb(OURS, 32, 0.02), climb(PIPECAT, 16, 0.04)])
        assert found.notes[0] == "Held: Switchroom 32, Pipecat 16."
        for verdict in (
            "CPU per stream ÷ Pipecat's ≤ 0.6: reached, 0.5",
            "memory per stream ≤ 6 MB: reached, 5.24 MB",
            "gateway's CPU per stream ≤ 0.5 % of a core: reached, 0.4 % of a core",
            "streams held ≥ 20: reached, 32",
            "streams held ÷ Pipecat's ≥ 1.6: reached, 2",
            "turn p95 of 20 streams ≤ 840 ms: reached, 600 ms",
        ):
            assert verdict in found.notes[1]
        assert all(len(row) == len(found.columns) for row in found.rows)

    def test_without_ours_there_is_no_verdict(self) -> None:
        found = ladder.section([climb(BARE, 8, 0.02), climb(PIPECAT, 4, 0.04)])
        assert found.notes[1].startswith("Goals are not judged")

    async def test_a_side_climbs_until_it_misses_twice(self) -> None:
        tried: list[tuple[str, int]] = []
        most = {"ours": 8, "theirs": 4}

        async def hold(name: str, calls: int) -> Held:
            tried.append((name, calls))
            if calls > 8:
                raise TimeoutError  # the calls do not even begin
            return held(calls, 0.02, took_ms=600.0 if calls <= most[name] else 900.0)

        sides = {name: lambda calls, name=name: hold(name, calls) for name in most}
        climbs = await race(sides, (2, 4, 8, 16, 32), Limit(840.0), lambda *_: None)
        assert {climb.name: climb.held for climb in climbs} == most
        assert tried == [
            *(("ours", 2), ("theirs", 2), ("ours", 4), ("theirs", 4)),
            *(("ours", 8), ("theirs", 8), ("theirs", 8), ("ours", 16), ("ours", 16)),
        ]


async def test_a_voice_url_connects_a_call_to_its_stream() -> None:
    async with VoiceUrls() as urls, aiohttp.ClientSession() as http:
        urls.add(connecting("ws://127.0.0.1:1/stream"))
        url = urls.add(connecting("ws://127.0.0.1:2/stream"))
        async with http.post(url) as answer:
            assert answer.content_type == "text/xml"
            assert '<Connect><Stream url="ws://127.0.0.1:2/stream"' in await answer.text()

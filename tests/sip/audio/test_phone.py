"""sip.audio.phone: a phone hears its room's tracks mixed, also if they stall or come back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sip.audio.phone import BacklogGauge, Mixer, PhoneLeg

pytestmark = pytest.mark.unit


class TestMixer:
    def frame(self, value: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        return np.full(4, value, np.int16)

    def test_one_track_passes_as_it_is(self) -> None:
        mixer = Mixer()
        mixer.add("a")
        frame = self.frame(5)
        assert mixer.push("a", frame) is frame

    def test_several_are_summed_without_wrapping(self) -> None:
        mixer = Mixer()
        for track in "abc":
            mixer.add(track)
        assert mixer.push("b", self.frame(30000)) is None
        assert mixer.push("c", self.frame(-5)) is None
        mixed = mixer.push("a", self.frame(10000))
        assert mixed is not None and list(mixed) == [32767] * 4
        alone = mixer.push("a", self.frame(7))
        assert alone is not None and list(alone) == [7] * 4

    def test_another_leads_when_the_leader_is_gone(self) -> None:
        mixer = Mixer()
        mixer.add("a")
        mixer.add("b")
        mixer.remove("a")
        assert mixer.push("a", self.frame(1)) is None
        assert mixer.push("b", self.frame(2)) is not None

    def test_a_leader_that_stalls_is_followed_by_another(self) -> None:
        mixer = Mixer()
        mixer.add("a")
        mixer.add("b")
        heard = [mixer.push("b", self.frame(value)) for value in range(5)]
        assert [None if frame is None else frame[0] for frame in heard] == [None, None, 2, 3, 4]
        assert mixer.push("a", self.frame(10)) is None
        mixed = mixer.push("b", self.frame(5))
        assert mixed is not None and list(mixed) == [15] * 4


async def test_a_track_that_is_back_at_once_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiveKit reports the end of a subscription only when the next one begins."""
    started: list[object] = []

    async def downlink(self: PhoneLeg, track: object) -> None:
        started.append(track)
        await asyncio.Event().wait()

    monkeypatch.setattr(PhoneLeg, "_downlink", downlink)
    leg = PhoneLeg(cast(Any, None), cast(Any, None))
    before, after = (cast(Any, SimpleNamespace(sid="TR_1")) for _ in range(2))
    leg.play(before)
    await asyncio.sleep(0)
    leg.stop("TR_1")
    leg.play(after)
    leg.play(after)
    for _ in range(5):
        await asyncio.sleep(0)
    assert started == [before, after]
    frame = np.ones(4, np.int16)
    assert leg._mixer.push("TR_1", frame) is frame
    leg.stop("TR_1")
    for _ in range(5):
        await asyncio.sleep(0)
    assert leg._playing == set()


class TestBacklogGauge:
    def test_only_what_never_drains_is_excess(self) -> None:
        gauge = BacklogGauge(target=100, window=4)
        assert [gauge.excess(level) for level in (900, 400, 900, 900)] == [0, 0, 0, 300]
        assert [gauge.excess(level) for level in (900, 0, 900, 900)] == [0, 0, 0, 0]
        assert [gauge.excess(level) for level in (150, 150, 150, 150)] == [0, 0, 0, 50]

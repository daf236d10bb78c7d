"""Checks that the libraries still have the private parts that worker._private uses.

An interrupted agent's voice stops at once, and its played audio is counted correctly. This is
tested on livekit-agents' own output to a room, whose queue plays in real time even if the room
is empty.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import AgentServer, JobContext
from livekit.agents.ipc.job_proc_lazy_main import _JobProc
from livekit.agents.utils import http_context
from livekit.agents.voice import io
from livekit.agents.voice.room_io._output import _ParticipantAudioOutput

from worker import _private
from worker.timing.spoken_audio import SpokenAudio

pytestmark = pytest.mark.unit

RATE = 24_000
FULL_S = 0.2  # a queue that holds this much makes the next frame wait
WAIT_S = 10.0
_PRECISE_S = 0.05


@dataclass(frozen=True)
class Dropped:
    """A pause drops ``queued_s``, less what is played in the ``within_s`` that it takes."""

    queued_s: float
    within_s: float

    def of(self, whole_s: float, played_s: float) -> None:
        assert whole_s - self.queued_s - _PRECISE_S <= played_s
        assert played_s <= whole_s - self.queued_s + self.within_s + _PRECISE_S


class Mouth:
    """A session's output to a room, without the room."""

    def __init__(self, sink: _ParticipantAudioOutput) -> None:
        self.sink = sink
        self.output = SpokenAudio(sink)
        self.finished: asyncio.Future[io.PlaybackFinishedEvent] = asyncio.Future()
        self.output.on("playback_finished", self.finished.set_result)

    async def speak(self, seconds: float) -> None:
        pcm = np.full(int(seconds * RATE), 3000, np.int16)
        await self.output.capture_frame(rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm)))
        self.output.flush()

    @property
    def queued_s(self) -> float:
        return self.sink._audio_source.queued_duration

    def pause(self) -> Dropped:
        """Pause. Return how much of the queue that can have dropped; it plays on meanwhile."""
        began, queued_s = time.monotonic(), self.queued_s
        self.output.pause()
        return Dropped(queued_s, time.monotonic() - began)

    async def queue_holds(self, seconds: float) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.queued_s < seconds:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def all_is_queued(self, seconds: float) -> None:
        """Wait until the queue has taken it all: the first 0.2 s at once, the rest as it plays."""
        async with asyncio.timeout(WAIT_S):
            while self.sink._source_pushed_duration < seconds - 1e-6:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def end(self) -> io.PlaybackFinishedEvent:
        async with asyncio.timeout(WAIT_S):
            return await self.finished


@pytest.fixture
async def mouth() -> AsyncIterator[Mouth]:
    sink = _ParticipantAudioOutput(
        rtc.Room(),
        sample_rate=RATE,
        num_channels=1,
        track_publish_options=rtc.TrackPublishOptions(),
    )
    sink._subscribed_fut.set_result(None)
    forwarding = sink._forwarding_task = asyncio.create_task(sink._forward_audio())
    yield Mouth(sink)
    forwarding.cancel()
    await sink.aclose()


async def test_nothing_is_queued_after_a_pause(mouth: Mouth) -> None:
    await mouth.speak(2.0)
    await mouth.queue_holds(FULL_S)
    mouth.output.pause()
    assert mouth.queued_s == 0.0


async def test_what_an_interruption_dropped_counts_as_unheard(mouth: Mouth) -> None:
    await mouth.speak(2.0)
    await mouth.queue_holds(FULL_S)
    handed_over = mouth.sink._source_pushed_duration
    dropped = mouth.pause()
    mouth.output.clear_buffer()
    finished = await mouth.end()
    assert finished.interrupted
    dropped.of(handed_over, finished.playback_position)


async def test_a_pause_that_was_none_goes_on_after_what_was_dropped(mouth: Mouth) -> None:
    await mouth.speak(2.0)
    await mouth.queue_holds(FULL_S)
    dropped = mouth.pause()
    mouth.output.resume()
    finished = await mouth.end()
    assert not finished.interrupted
    dropped.of(2.0, finished.playback_position)


async def test_the_end_of_a_segment_is_played(
    mouth: Mouth, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mouth.speak(0.2)
    await mouth.all_is_queued(0.2)
    dropped: list[str] = []
    monkeypatch.setattr(mouth.sink._audio_source, "clear_queue", lambda: dropped.append("all"))
    mouth.output.pause()
    assert dropped == []
    finished = await mouth.end()
    assert finished.playback_position == pytest.approx(0.2)


async def test_what_is_played_of_a_stretch_is_known_before_its_report(mouth: Mouth) -> None:
    reported: list[io.PlaybackProgressedEvent] = []
    mouth.output.on("playback_progressed", reported.append)
    assert _private.playing(mouth.output) is None
    await mouth.speak(0.6)
    await mouth.all_is_queued(0.6)
    run = _private.playing(mouth.output)
    assert run is not None and not reported
    started_at, offset, played_s = run
    await mouth.end()
    last = reported[-1]  # a busy machine may play it in several stretches
    assert offset == last.offset
    assert started_at == pytest.approx(last.started_at, abs=_PRECISE_S)
    assert 0 < played_s <= last.duration
    assert _private.playing(mouth.output) is None


def test_whether_livekit_is_away_is_known() -> None:
    server = AgentServer(ws_url="ws://127.0.0.1:9", api_key="key", api_secret="secret")
    assert _private.is_connecting(server) is False
    server._connecting = True
    assert _private.is_connecting(server) is True
    source = inspect.getsource(AgentServer)
    for value in (True, False):
        assert source.count(f"self._connecting = {value}") == 1


async def test_a_jobs_pending_tasks_are_waited_for_before_it_is_taken_apart() -> None:
    context = JobContext.__new__(JobContext)
    context._pending_tasks = []
    task = asyncio.create_task(asyncio.sleep(0))
    _private.outlive(context, task)
    assert context._pending_tasks == [task]
    await task
    assert "self._pending_tasks = " in inspect.getsource(JobContext.__init__)
    source = inspect.getsource(_JobProc._run_job_task)
    waits = source.index("await aio.cancel_and_wait(*tasks)")
    assert "tasks := self._job_ctx._pending_tasks" in source
    assert waits < source.index("await self._job_ctx._on_cleanup()")
    assert waits < source.index("await http_context._close_http_ctx()")


async def test_what_waits_to_be_played_is_known(mouth: Mouth) -> None:
    assert _private.played(mouth.output) is None
    await mouth.speak(0.6)
    await mouth.queue_holds(0.1)
    first = _private.played(mouth.output)
    assert first is not None
    async with asyncio.timeout(WAIT_S):
        while _private.played(mouth.output) == first:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    mouth.output.pause()
    assert _private.played(mouth.output) is None, "it need not move"
    mouth.output.resume()
    await mouth.end()
    assert _private.played(mouth.output) is None


def test_the_tls_context_is_made_once_for_all_jobs() -> None:
    _private.make_tls_context()
    kept = http_context._create_ssl_context()
    _private.make_tls_context()
    assert http_context._create_ssl_context() is kept
    assert "ssl=_create_ssl_context()" in inspect.getsource(http_context)


@pytest.mark.parametrize("name", _private.LOADED_WHEN_USED)
def test_what_is_loaded_by_name_is_there(name: str) -> None:
    assert importlib.util.find_spec(name) is not None


def test_another_output_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Other(io.AudioOutput):
        async def capture_frame(self, frame: rtc.AudioFrame) -> None: ...

        def flush(self) -> None: ...

        def clear_buffer(self) -> None: ...

    other = Other(label="other", capabilities=io.AudioOutputCapabilities(pause=True))
    with caplog.at_level("INFO", "worker._private"):
        _private.drop_queued(other)
    assert caplog.messages == ["the agent's voice cannot be stopped early: other"]

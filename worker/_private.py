"""The private parts of libraries that the worker uses where there is no public equivalent.

All belong to livekit-agents (1.8.9), except for a module of anyio. Each has a test that fails when
the library changes (tests/worker/test_private.py). Members that a plugin's class overrides or uses
from its base (``_run``, ``_event_ch``) are the plugin interface and not listed here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from livekit.agents import AgentServer
from livekit.agents.utils import http_context
from livekit.agents.voice import io

log = logging.getLogger(__name__)

LOADED_WHEN_USED: Final = ("anyio._backends._asyncio",)
"""Modules that are imported by name when a library first needs them."""


def is_connecting(server: AgentServer) -> bool:
    """Return True while the worker has no connection to LiveKit, so that it is offered no call."""
    return server._connecting


def outlive(ctx: Any, task: asyncio.Task[Any]) -> None:
    """Let ``task`` end the work of ``ctx``, a job's context, when the worker's main process dies.

    livekit-agents then cancels all tasks of the job at once, the session's among them, and waits
    for none: what the caller has heard of the last answer is lost. Only the job's pending tasks are
    cancelled first, and waited for.
    """
    try:
        ctx._pending_tasks.append(task)
    except AttributeError:
        log.warning("a job whose worker is killed will forget its last turn")


def make_tls_context() -> None:
    """Build the TLS context of the jobs' HTTP sessions, which livekit-agents caches."""
    http_context._create_ssl_context()


def drop_queued(output: io.AudioOutput) -> None:
    """Drop at once the audio that livekit-agents will drop from ``output``, which was just paused.

    livekit-agents pauses its output to a room by passing no more frames to LiveKit's queue. It
    drops the up to 200 ms in the queue only when its next frame is due, that is when the full
    queue has taken the previous frame, up to 50 ms later. The agent talks on until then: with this
    function it falls silent 260 ms after a caller interrupts it, without it after 320 ms (median,
    `python -m dev.bench barge-in`).

    The played audio is accounted for as livekit-agents does it. Like livekit-agents, this function
    lets the last 200 ms of a segment play. If livekit-agents has changed, nothing is dropped early.
    """
    sink = _last(output)
    if getattr(sink, "drops_when_paused", False):
        return
    try:
        waiting, source = sink._audio_buf, sink._audio_source
        pushed: float = sink._source_pushed_duration
        discarded: float = sink._source_discarded_duration
        report = sink._report_run
    except AttributeError:
        log.info("the agent's voice cannot be stopped early: %s", sink.label)
        return
    if waiting.empty():
        return
    queued: float = source.queued_duration
    report(offset=pushed - queued, ended_at=time.time(), resumes_at=pushed)
    sink._source_discarded_duration = discarded + queued
    source.clear_queue()


def playing(output: io.AudioOutput) -> tuple[float, float, float] | None:
    """Return the stretch of the current segment that ``output`` plays and did not report yet.

    It is what ``playback_progressed`` would report now: when the stretch began (Unix seconds), its
    offset in the segment, and how much of it was played. None if there is no such stretch, or
    livekit-agents has changed; then the report comes when the stretch is over.
    """
    sink = _last(output)
    if (own := getattr(sink, "playing", None)) is not None:
        run: tuple[float, float, float] | None = own()
        return run
    try:
        offset: float = sink._run_offset
        pushed: float = sink._source_pushed_duration
        queued: float = sink._audio_source.queued_duration
        dry_at: float | None = sink._dry_at
    except AttributeError:
        log.debug("no progress of the agent's voice: %s", sink.label)
        return None
    duration = pushed - queued - offset
    if duration <= 0:
        return None
    now = time.time()
    return (now if dry_at is None else min(now, dry_at)) - duration, offset, duration


def played(output: io.AudioOutput) -> float | None:
    """Return how many seconds of the current segment ``output`` has passed on to LiveKit's queue.

    None: nothing waits to be passed on, the output is paused, or livekit-agents has changed.
    """
    sink = _last(output)
    try:
        waits = not (sink._audio_buf.empty() and sink._forwarding_idle.is_set())
        pushed: float = sink._source_pushed_duration
        return pushed if waits and sink._playback_enabled.is_set() else None
    except AttributeError:
        log.debug("not known what the agent's voice waits for: %s", sink.label)
        return None


def _last(output: io.AudioOutput) -> Any:
    while output.next_in_chain is not None:
        output = output.next_in_chain
    return output

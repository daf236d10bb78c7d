"""The private parts of libraries that the worker uses where there is no public equivalent.

All belong to livekit-agents (1.8.9), except for a module of anyio. Each has a test that fails when
the library changes (tests/worker/test_private.py). Members that a plugin's class overrides or uses
from its base (``_run``, ``_event_ch``) are the plugin interface and not listed here.
"""

from __future__ import annotations

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
    sink: Any = output
    while sink.next_in_chain is not None:
        sink = sink.next_in_chain
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

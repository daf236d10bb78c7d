"""The private parts of libraries that the worker uses, because nothing public does the same.

All are livekit-agents' (1.8.9), but for a module of anyio's. Each has a test that fails when the
library is built otherwise (tests/worker/test_private.py). What a plugin's class overrides or uses
of its base (``_run``, ``_event_ch``) is how plugins are written, and not here.
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
    """Whether LiveKit is away, so that it can give this worker no call."""
    return server._connecting


def make_tls_context() -> None:
    """Make the TLS settings of the jobs' HTTP sessions, which livekit-agents keeps."""
    http_context._create_ssl_context()


def drop_queued(output: io.AudioOutput) -> None:
    """Drop now what livekit-agents is about to drop from ``output``, which was just paused.

    It pauses its output to a room by handing LiveKit's queue no more frames, and drops the up to
    200 ms in the queue when its next frame is due: when the full queue has taken the frame before
    that one, up to 50 ms later. As long the agent would talk on: a caller who interrupts waited
    for 320 ms until it was silent, and waits for 260 with this (median, `python -m dev.bench
    barge-in`).

    What was played is counted as it would count it. Like it, this leaves the last 200 ms of a
    segment to be played. Where livekit-agents is built otherwise, nothing is dropped early.
    """
    sink: Any = output
    while sink.next_in_chain is not None:
        sink = sink.next_in_chain
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

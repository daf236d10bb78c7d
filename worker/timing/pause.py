"""An agent that is interrupted is silent at once.

livekit-agents (1.8.9) pauses its output to the room by handing LiveKit's queue no more frames, and
drops the up to 200 ms in the queue when its next frame is due: when the full queue has taken the
frame before that one, up to 50 ms later. As long the agent would talk on: a caller who interrupts
waited for 320 ms until it was silent, and waits for 260 with this (median, `python -m dev.bench
barge-in`). There is no public way to have it sooner.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from livekit.agents.voice import io

log = logging.getLogger(__name__)


def drop_queued(output: io.AudioOutput) -> None:
    """Drop now what livekit-agents is about to drop from ``output``, which was just paused.

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

"""Deepgram's STT, which knows where in the audio each of its connections began.

Its words count from the start of a connection. After a failure, the next connection begins with the
audio that the failed one did not take; in a chain, with audio that was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from livekit import rtc
from livekit.agents import APIConnectOptions, NotGivenOr
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN
from livekit.agents.utils import aio
from livekit.plugins import deepgram

from worker.timing.turn_clock import POSITION, Origins


class Ears(deepgram.STT):
    """``origins`` gets the position of the first audio of each connection."""

    def __init__(self, origins: Origins, **options: Any) -> None:
        super().__init__(**options)
        self._origins = origins

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> deepgram.SpeechStream:
        stream = super().stream(language=language, conn_options=conn_options)

        def taken(frame: object) -> None:
            # livekit-agents gives every connection an offset of its own.
            offset = stream.start_time_offset
            if offset not in self._origins and isinstance(frame, rtc.AudioFrame):
                position = frame.userdata.get(POSITION)
                if position is not None:
                    self._origins[offset] = position

        stream._input_ch = _Watched(taken)
        return stream


class _Watched(aio.Chan[Any]):
    """A stream's input; ``on_taken`` gets each item that a connection takes."""

    def __init__(self, on_taken: Callable[[object], None]) -> None:
        super().__init__()
        self._on_taken = on_taken

    def recv_nowait(self) -> Any:
        item = super().recv_nowait()
        self._on_taken(item)
        return item

"""Speech synthesised in advance, such as the greeting while the phone rings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, tts
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT, TimedString

T = TypeVar("T")


class PreparedSpeech:
    """Text and its audio, playable at any time: playback follows a synthesis that still runs.

    The TTS reports synthesis errors itself (its ``error`` event).
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._frames: list[rtc.AudioFrame] = []
        self._words: list[TimedString] = []
        self._grown = asyncio.Condition()
        self._complete = False
        self._playing = False

    @property
    def duration_s(self) -> float:
        """The duration of the audio synthesised so far."""
        return sum(frame.duration for frame in self._frames)

    async def synthesise(self, engine: tts.TTS[Any], options: APIConnectOptions) -> APIError | None:
        """Synthesise the text; return the error if the TTS failed for good."""
        request_id = ""
        try:
            async with engine.stream(conn_options=options) as stream:
                stream.push_text(self.text)
                stream.end_input()
                async for piece in stream:
                    if piece.request_id != request_id:
                        request_id = piece.request_id
                        # A retry starts from the beginning: drop earlier audio unless it was heard.
                        if not self._playing:
                            self._frames.clear()
                            self._words.clear()
                    await self._add(piece.frame)
            return None
        except APIError as error:
            return error
        finally:
            self._complete = True
            async with self._grown:
                self._grown.notify_all()

    async def _add(self, frame: rtc.AudioFrame) -> None:
        async with self._grown:
            self._frames.append(frame)
            self._words.extend(frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, []))
            self._grown.notify_all()

    async def audio(self) -> AsyncIterator[rtc.AudioFrame]:
        """Yield the frames from the first."""
        self._playing = True
        async for frame in self._follow(self._frames):
            yield frame
            # If it got all frames at once, livekit-agents would analyse them all (the speech rate,
            # for its transcript) before playing the first: 35 ms for a greeting (measured).
            await asyncio.sleep(0)

    async def words(self) -> AsyncIterator[str]:
        """Yield the text in pieces with their times, so that a barge-in can be located in it; or
        the whole text at once if the TTS gives no times."""
        timed = False
        async for word in self._follow(self._words):
            timed = True
            yield word
        if not timed:
            yield self.text

    async def _follow(self, items: list[T]) -> AsyncIterator[T]:
        position = 0
        while True:
            async with self._grown:
                await self._grown.wait_for(lambda: self._complete or position < len(items))  # noqa: B023
            if position >= len(items):
                return
            yield items[position]
            position += 1

"""Finds which words of a speech were heard, from how much of its audio was.

livekit-agents' own synchroniser guesses that by the clock, and measures the speaking rate of all
audio for it: a fifth of a stream's CPU time. Here the played position is known, so the TTS's word
times are enough; without them, the words are spread evenly over the audio.
"""

from __future__ import annotations

import re
from itertools import accumulate

from livekit.agents.types import NOT_GIVEN, TimedString
from livekit.agents.voice import io

# Of English speech; used only while it is unknown how long the audio of the text will be.
_CHARACTERS_PER_S = 15.0
_WORDS = re.compile(r"\s*\S+\s*")


class HeardText(io.TextOutput):
    """The text of the current speech; ``until`` returns its heard part."""

    def __init__(self) -> None:
        super().__init__(label="heard text", next_in_chain=None)
        self._pieces: list[tuple[str, float | None]] = []  # a text, and when it begins (s)
        self._complete = False

    async def capture_text(self, text: str) -> None:
        if self._complete:
            self.clear()
        start = text.start_time if isinstance(text, TimedString) else NOT_GIVEN
        self._pieces.append((text, start if isinstance(start, float | int) else None))

    def flush(self) -> None:
        self._complete = True

    def clear(self) -> None:
        """Forget the speech: it is over."""
        self._pieces.clear()
        self._complete = False

    def until(self, heard_s: float, audio_s: float | None) -> str:
        """Return the text that has begun after ``heard_s`` of the audio.

        ``audio_s``: the length of the whole audio; None if it is not known yet.
        """
        if any(start is not None for _, start in self._pieces):
            return self._timed(heard_s)
        text = "".join(piece for piece, _ in self._pieces)
        if audio_s is None or audio_s <= 0:
            audio_s = max(len(text) / _CHARACTERS_PER_S, heard_s)
        share = heard_s / audio_s if audio_s else 0.0
        words = _WORDS.findall(text)
        begins = [0, *accumulate(map(len, words))]
        heard = [word for word, at in zip(words, begins, strict=False) if at < share * len(text)]
        return "".join(heard).rstrip()

    def _timed(self, heard_s: float) -> str:
        heard, began = [], 0.0
        for text, start in self._pieces:
            began = began if start is None else start  # blanks between words have no times
            if began >= heard_s:
                break
            heard.append(text)
        return "".join(heard).rstrip()

"""A recording's samples: its other format, and its levels for drawing. Blocking: use threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, cast

import av
import numpy as np
from av import AudioFrame, AudioResampler, AudioStream
from numpy.typing import NDArray

from core.recordings.config import Format

RATE = 16_000
_FULL_SCALE = 32_768
_BLOCK = RATE
# Speech on two channels: 32 kbit/s are transparent for it.
_OPUS_BIT_RATE = 64_000


class Undecodable(Exception):
    """The object is no recording that can be decoded."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest level of each window, 0 to 1, per channel."""

    duration_ms: int
    window_ms: float
    caller: list[float]
    agent: list[float]


def convert(source: IO[bytes], stored: Format, target: IO[bytes], format: Format) -> None:
    """Write ``source``, which is ``stored``, to ``target`` in ``format``, and flush it.

    Raises Undecodable.
    """
    codec, rate = ("pcm_s16le", RATE) if format == "wav" else ("libopus", 48_000)
    # The same source gives the same bytes, so that ranges of several requests fit together.
    with av.open(target, "w", format=format, options={"fflags": "+bitexact"}) as written:
        stream = cast(AudioStream, written.add_stream(codec, rate=rate, layout="stereo"))
        if format == "ogg":
            stream.bit_rate = _OPUS_BIT_RATE
        for frame in _frames(source, stored, stream.format.name, rate):
            frame.pts = None
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    target.flush()


def join(sources: Sequence[tuple[IO[bytes], Format]], target: IO[bytes]) -> None:
    """Write the sum of ``sources`` to ``target`` as WAV, and flush it.

    They begin at the same moment, and each is silent where another one sounds: a lost agent and its
    successor. Raises Undecodable.
    """
    with av.open(target, "w", format="wav", options={"fflags": "+bitexact"}) as written:
        stream = written.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        for block in _summed([_Samples(source, stored) for source, stored in sources]):
            frame = AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="stereo")
            frame.rate = RATE
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    target.flush()


def _summed(sources: Sequence[_Samples]) -> Iterator[NDArray[np.int16]]:
    while True:
        blocks = [source.take(_BLOCK) for source in sources]
        if not (longest := max(map(len, blocks))):
            return
        total = np.zeros((longest, 2), np.int32)
        for block in blocks:
            total[: len(block)] += block
        yield np.clip(total, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


class _Samples:
    """The samples of a source, of shape (n, 2), taken in pieces."""

    def __init__(self, source: IO[bytes], stored: Format) -> None:
        self._frames = _frames(source, stored, "s16", RATE)
        self._waiting: list[NDArray[np.int16]] = []

    def take(self, count: int) -> NDArray[np.int16]:
        """Return the next ``count`` samples, fewer at the end."""
        taken, self._waiting = self._waiting, []
        have = sum(map(len, taken))
        while have < count and (frame := next(self._frames, None)) is not None:
            taken.append(frame.to_ndarray().reshape(-1, 2).astype(np.int16, copy=False))
            have += len(taken[-1])
        if not taken:
            return np.zeros((0, 2), np.int16)
        together = np.concatenate(taken)
        if have > count:
            self._waiting = [together[count:]]
        return together[:count]


def peaks_of(source: IO[bytes], stored: Format, width: int, duration_ms: int) -> Peaks:
    """Return ``width`` windows of ``source``, which is about ``duration_ms`` long.

    Raises Undecodable.
    """
    expected = max(1, duration_ms * RATE // 1000)
    highest = np.zeros((width, 2), np.int32)
    at = 0
    for frame in _frames(source, stored, "s16", RATE):
        samples: NDArray[np.int32] = np.abs(frame.to_ndarray().reshape(-1, 2).astype(np.int32))
        windows = np.minimum((np.arange(at, at + len(samples)) * width) // expected, width - 1)
        touched, begin = np.unique(windows, return_index=True)
        levels = np.maximum.reduceat(samples, begin)
        highest[touched] = np.maximum(highest[touched], levels)
        at += len(samples)
    caller, agent = np.round(highest / _FULL_SCALE, 3).T.tolist()
    return Peaks(duration_ms, round(duration_ms / width, 3), caller, agent)


def _frames(source: IO[bytes], stored: Format, format: str, rate: int) -> Iterator[AudioFrame]:
    resampler = AudioResampler(format=format, layout="stereo", rate=rate)
    try:
        # Not guessed by the content: some formats (playlists) open other files and addresses.
        with av.open(source, "r", format=stored) as opened:
            for frame in opened.decode(audio=0):
                yield from resampler.resample(frame)
            yield from resampler.resample(None)
    except (av.FFmpegError, IndexError) as error:
        raise Undecodable(type(error).__name__) from None

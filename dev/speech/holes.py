"""Finds holes in heard speech by comparing it with the speech that was sent."""

from __future__ import annotations

import numpy as np

from core.audio import Pcm
from dev.speech.listen import FRAME_MS, find, frame_levels, level_dbfs

PIECE_MS = 240

_HOP_MS = 40
_NEAR_MS = 30  # a jitter buffer stretches or shortens speech inaudibly by about this much
_FAR_MS = 2000  # how much later a piece is searched if it is not in its place
_FITS, _FITS_FAR = 0.6, 0.8  # normalized correlation
_VOICE_DBFS, _SILENT_DBFS = -38.0, -50.0


def longest_hole_ms(heard: Pcm, spoken: Pcm, sample_rate: int) -> float:
    """Return the longest interruption for the listener that is no pause of the speaker.

    Both signals begin with the speech. ``spoken`` is located in ``heard`` piece by piece. A hole
    is a jump between two pieces (silence or filler was inserted, or speech is missing), a silent
    stretch where the speech is not silent, or a missing end. Stretching by a few percent, noise,
    another level and audio after the speech do not matter.

    Returns:
        Milliseconds, exact to about 10; short jumps of a healthy jitter buffer included.
    """
    places = find_pieces(heard, spoken, sample_rate)
    if not places:
        return 1000 * len(spoken) / sample_rate
    samples_a_ms = sample_rate / 1000
    shifts = [heard_at - spoken_at for spoken_at, heard_at in places]
    jump = max(np.abs(np.diff(shifts)), default=0) / samples_a_ms
    last_spoken, last_heard = places[-1]
    sounding = _last_sound(spoken, sample_rate)
    missing = (sounding - last_spoken) / samples_a_ms - PIECE_MS - 2 * _HOP_MS
    silent = _longest_silence_ms(heard, spoken, places, sample_rate)
    return float(max(jump, missing, silent, 0.0))


def find_pieces(heard: Pcm, spoken: Pcm, sample_rate: int) -> list[tuple[int, int]]:
    """Return the first sample of each piece that was found, in ``spoken`` and in ``heard``.

    Pieces of PIECE_MS begin every 40 ms. Both signals begin with the speech.
    """
    block, hop = (sample_rate * ms // 1000 for ms in (PIECE_MS, _HOP_MS))
    found: list[tuple[int, int]] = []
    shift = 0
    for start in range(0, len(spoken) - block + 1, hop):
        piece = spoken[start : start + block]
        if level_dbfs(piece) < _VOICE_DBFS:
            continue
        place = _place(piece, heard, start + shift, sample_rate)
        if place is not None:
            found.append((start, place))
            shift = place - start
    return found


def _place(piece: Pcm, heard: Pcm, expected: int, sample_rate: int) -> int | None:
    near = sample_rate * _NEAR_MS // 1000
    far = sample_rate * _FAR_MS // 1000
    tries = (
        (max(0, expected - near), expected + near, _FITS),
        (max(0, expected - far // 4), expected + far, _FITS_FAR),
    )
    for start, end, enough in tries:
        window = heard[start : end + len(piece)]
        if len(window) >= len(piece):
            match = find(piece, window)
            if match.score >= enough:
                return start + match.offset
    return None


def _last_sound(spoken: Pcm, sample_rate: int) -> int:
    voiced = np.flatnonzero(frame_levels(spoken, sample_rate) >= _VOICE_DBFS)
    return 0 if len(voiced) == 0 else int(voiced[-1] + 1) * sample_rate * FRAME_MS // 1000


def _longest_silence_ms(
    heard: Pcm, spoken: Pcm, places: list[tuple[int, int]], sample_rate: int
) -> float:
    """Return the longest run of frames that are silent in ``heard`` and voiced in ``spoken``."""
    frame = sample_rate * FRAME_MS // 1000
    starts = np.array([start for start, _ in places])
    longest = run = pause = 0
    for number, level in enumerate(frame_levels(spoken, sample_rate)):
        at = number * frame
        spoken_at, heard_at = places[max(0, int(np.searchsorted(starts, at, "right")) - 1)]
        there = heard_at + at - spoken_at
        if level_dbfs(heard[there : there + frame]) >= _SILENT_DBFS:
            run = pause = 0
        elif level < _VOICE_DBFS:
            pause += 1  # counts only between frames that are silent but should not be
        else:
            run = run + pause + 1 if run else 1
            pause = 0
        longest = max(longest, run)
    return float(longest * FRAME_MS)

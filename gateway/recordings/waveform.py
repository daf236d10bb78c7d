"""A recording as a picture: the caller above, the agent below, with their turns marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from core.models import Turn
from gateway.recordings.audio import Peaks

WIDTH = 800
_LANE = 70
_TOP = 24
_MIDDLE = _TOP + _LANE + 8
_AXIS = _MIDDLE + _LANE + 14
_HEIGHT = _AXIS + 26
_NAME_CHARACTERS = 7.0
"""The width of a letter."""
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
_TICKS = 10
# Not in XML 1.0, even escaped.
_UNUSABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_STYLE = """\
text{font:11px system-ui,sans-serif;fill:#444}
.name{font-weight:600;fill:#111}
.caller{fill:#1d6fb8}.agent{fill:#b8561d}
.turn{fill-opacity:.14}.said{pointer-events:none}
.line{stroke:#bbb;stroke-width:1}"""


def waveform(peaks: Peaks, turns: Sequence[Turn]) -> str:
    """Return an SVG of 800 px. A turn's words are its tooltip."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_HEIGHT}" '
        f'width="{WIDTH}" height="{_HEIGHT}" role="img" aria-label="Waveform of the recording">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        *_lane("caller", "Caller", _TOP, peaks.caller),
        *_lane("agent", "Agent", _MIDDLE, peaks.agent),
        *_turns(peaks.duration_ms, turns),
        *_axis(peaks.duration_ms),
        "</svg>",
    ]
    return "\n".join(parts)


def _lane(kind: str, name: str, top: float, levels: Sequence[float]) -> Iterator[str]:
    middle, step = top + _LANE / 2, WIDTH / len(levels)
    label = top - 8 if kind == "caller" else top + _LANE + 11
    yield f'<text class="name" x="4" y="{label:g}">{name}</text>'
    yield f'<path class="line" d="M0 {middle:g}H{WIDTH}"/>'
    # One path of all bars: at full scale a bar is as high as the lane.
    bars = "".join(
        f"M{number * step:.1f} {middle - half:.1f}h{step:.2f}v{2 * half:.1f}h-{step:.2f}z"
        for number, level in enumerate(levels)
        if (half := level * _LANE / 2) >= 0.05
    )
    yield f'<path class="{kind}" d="{bars}"/>'


def _turns(duration_ms: int, turns: Sequence[Turn]) -> Iterator[str]:
    for number, turn in enumerate(turns, 1):
        caller = ("caller", _TOP, turn.start_ms, turn.end_ms, turn.transcript)
        agent = ("agent", _MIDDLE, turn.response_start_ms, turn.response_end_ms, turn.response)
        for kind, top, start, end, words in (caller, agent):
            if start is None or end is None or end <= start or start >= duration_ms:
                continue
            x = max(0.0, start / duration_ms * WIDTH)
            width = max(2.0, min(end / duration_ms, 1.0) * WIDTH - x)
            said = "(masked)" if turn.masked else words
            title = _text(f"{_clock(start / 1000)} {said}")
            yield (
                f'<g><title>{title}</title><rect class="turn {kind}" x="{x:.1f}" y="{top}" '
                f'width="{width:.1f}" height="{_LANE}" rx="3"/>'
            )
            number_width = len(str(number)) * _NAME_CHARACTERS + 4
            if width > number_width:
                yield f'<text class="said" x="{x + 3:.1f}" y="{top + 12}">{number}</text>'
            yield "</g>"


def _axis(duration_ms: int) -> Iterator[str]:
    seconds = duration_ms / 1000
    fitting = (step for step in _STEPS_S if seconds / step <= _TICKS)
    step = next(fitting, _STEPS_S[-1])
    y = _AXIS + 4
    yield f'<path class="line" d="M0 {y}H{WIDTH}"/>'
    for at in range(0, int(seconds) + 1, step):
        x = at / seconds * WIDTH if seconds else 0.0
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        yield f'<path class="line" d="M{x:.1f} {y}v5"/>'
        yield f'<text x="{x:.1f}" y="{y + 17}" text-anchor="{anchor}">{_clock(at)}</text>'


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _text(words: str) -> str:
    return escape(_UNUSABLE.sub("\ufffd", words))

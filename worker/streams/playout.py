"""The agent's voice on a stream: how much to send, and how much the far end has heard.

Sans-I/O: no clock and no socket. ``now`` is in seconds of a monotonic clock. After every other
call the owner writes what ``due`` returns, passes on ``reports``, and calls both again at
``next_at``.

A far end plays what it gets in order, and echoes a mark when everything before it has been
played. So the position that it has heard is known at each echo; in between the clock
interpolates it, at most up to the next mark whose echo is missing. A far end that has never
echoed is trusted to play in real time.

Nothing is sent twice or skipped: a pause takes back what was sent but not heard, and the voice
goes on from the heard position.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeAlias

LEAD_S: Final = 0.3
"""Audio is sent at most this far ahead of the heard position.

That position may be up to one chunk ahead of a far end with a long delay, so that at most
``LEAD_S + CHUNK_S`` wait there.
"""

FRAME_S: Final = 0.02
CHUNK_S: Final = 0.1
STALLED_S: Final = 4.0

_MARKS: Final = 64  # more than LEAD_S of single frames; a far end without echoes keeps no more
_ECHOES: Final = 20  # so many show when audio was played: most of them may wait on their way
_SURE: Final = 3  # echoes that are all late by more than a frame: the far end has paused
_TRIPS: Final = 3


@dataclass(frozen=True, slots=True)
class Send:
    audio: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """The far end should echo this when it has played everything before it."""

    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    """The far end should drop its queue. ``heard_s`` of the current speech were heard."""

    heard_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """The first frame of a speech was sent."""

    at: float


@dataclass(frozen=True, slots=True)
class Progressed:
    """A stretch of the speech was heard without a break; it began at ``started_at``.

    That time is when its audio was sent, or if ``echoed``, later by the delay of both directions.
    """

    started_at: float
    offset_s: float
    duration_s: float
    echoed: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The speech was heard, or was interrupted after ``heard_s``."""

    heard_s: float
    interrupted: bool


Write: TypeAlias = Send | Mark | Clear
Report: TypeAlias = Started | Progressed | Finished


@dataclass(frozen=True, slots=True)
class _SentMark:
    name: str
    position: int
    sent_at: float


@dataclass(slots=True)
class _Speech:
    """One segment of livekit-agents' AudioOutput. Positions are bytes from its beginning."""

    unheard: bytearray = field(default_factory=bytearray)
    heard: int = 0
    sent: int = 0
    length: int | None = None  # without padding; None until the speech is complete
    started: bool = False
    cleared: bool = False  # the far end was told to drop its queue, and has been sent nothing since
    run: int = 0  # where the stretch begins that was not reported yet
    anchor: int = 0  # the position at ``anchored_at``
    anchored_at: float = 0.0
    left_at: float = 0.0  # when position 0 would have left, by the stretch that plays
    echoed_at: deque[float] = field(default_factory=lambda: deque(maxlen=_ECHOES))
    """When the echo of position 0 would have come, by the last echoes of that stretch."""
    marks: deque[_SentMark] = field(default_factory=lambda: deque(maxlen=_MARKS))

    @property
    def played_at(self) -> float:
        """When position 0 left, or its echo came: an echo may be late, but is never early."""
        if not self.echoed_at:
            return self.left_at
        least, latest = min(self.echoed_at), min(list(self.echoed_at)[-_SURE:])
        return latest if latest - least > FRAME_S else least

    @property
    def end(self) -> int:
        return self.heard + len(self.unheard)

    @property
    def spoken(self) -> int:
        """The heard position without padding."""
        return self.heard if self.length is None else min(self.heard, self.length)


class Playout:
    """One session's voice. It starts detached.

    ``silence`` is one sample of silence in the wire's encoding. With ``echoes`` the far end is
    known to echo marks; otherwise its first echo shows it. ``marks``: how their names begin.
    """

    def __init__(self, bytes_per_s: int, silence: bytes, *, echoes: bool, marks: str = "") -> None:
        self.echoes = echoes
        self._marks = marks
        self._bytes_per_s = bytes_per_s
        self._silence = silence
        self._frame, self._chunk, self._lead = (
            round(bytes_per_s * seconds) for seconds in (FRAME_S, CHUNK_S, LEAD_S)
        )
        self._speeches: deque[_Speech] = deque()  # only the first plays
        self.trip_s: float | None = None
        """How long audio and its echo take together, without the time of playing; None if unknown.

        Far ends play in frames, so that a measurement may be one frame too long; a busy machine
        makes it longer still. It stands until it is wrong by more than a frame.
        """
        self._trips_s: deque[float] = deque(maxlen=_TRIPS)  # the least of each stretch of voice
        self._dropping = False  # the rest of a speech that was cleared before its flush
        self._attached = False
        self._paused = False
        self._generation = 0
        self._last_mark = 0
        self._clear: Clear | None = None
        self._reports: list[Report] = []

    @property
    def idle(self) -> bool:
        """True if every speech has been heard or cleared."""
        return not self._speeches

    def heard_s(self, now: float) -> float:
        """Return how much of the current speech was heard."""
        self._advance(now)
        return self._speeches[0].spoken / self._bytes_per_s if self._speeches else 0.0

    def playing(self, now: float) -> Progressed | None:
        """Return the stretch of the current speech that was not reported yet."""
        self._advance(now)
        return self._run(self._speeches[0], now) if self._speeches else None

    def stalled(self, now: float, after_s: float = STALLED_S) -> bool:
        """Return True if the far end echoes marks, but has not echoed one for ``after_s``."""
        if not (self.echoes and self._speeches and (marks := self._speeches[0].marks)):
            return False
        return now - marks[0].sent_at > after_s

    def push(self, audio: bytes) -> None:
        """Append whole samples to the current speech, or begin the next one."""
        if self._dropping:
            return
        if not self._speeches or self._speeches[-1].length is not None:
            self._speeches.append(_Speech())
        self._speeches[-1].unheard += audio

    def flush(self) -> None:
        """The current speech is complete."""
        self._dropping = False
        if self._speeches and (speech := self._speeches[-1]).length is None:
            speech.length = speech.end
            self._pad(speech)

    def pause(self, now: float) -> None:
        if not self._paused:
            self._advance(now)
            self._paused = True
            self._take_back(now)

    def resume(self, now: float) -> None:
        self._advance(now)
        self._paused = False

    def clear(self, now: float) -> None:
        """Interrupt every speech. A speech without its flush is dropped until then."""
        self._advance(now)
        self._take_back(now)
        if self._speeches:
            self._dropping = self._speeches[-1].length is None
        while self._speeches:
            self._finish(now, interrupted=True)

    def detach(self, now: float) -> None:
        """The socket is lost, and the far end's queue with it."""
        if self._attached:
            self._advance(now)
            self._attached = False
            self._take_back(now)
            self._clear = None

    def attach(self, now: float) -> None:
        """A socket is there, possibly in place of another. Its far end's queue is empty."""
        self.detach(now)
        self._attached = True

    def echoed(self, name: str, now: float) -> bool:
        """A mark came back. Return False if it is not one whose echo is missing."""
        speech = self._speeches[0] if self._speeches else _Speech()
        if name not in [mark.name for mark in speech.marks]:
            return False
        while (mark := speech.marks.popleft()).name != name:
            pass  # played, too: the far end plays in order
        self.echoes = True
        speech.anchor, speech.anchored_at = mark.position, now
        self._time(speech, now - mark.position / self._bytes_per_s)
        self._advance(now)
        return True

    def _time(self, speech: _Speech, echoed_at: float) -> None:
        trip_s = max(0.0, echoed_at - speech.left_at)
        if speech.echoed_at:
            trip_s = min(trip_s, self._trips_s.pop())
        speech.echoed_at.append(echoed_at)
        self._trips_s.append(trip_s)
        least_s = min(self._trips_s)
        if self.trip_s is None or len(self._trips_s) == 1 or abs(least_s - self.trip_s) > FRAME_S:
            self.trip_s = least_s

    def due(self, now: float) -> list[Write]:
        """Return what is to be written to the socket now, in order."""
        self._advance(now)
        writes: list[Write] = [self._clear] if self._clear else []
        self._clear = None
        while (speech := self._playing()) and (size := self._ready(speech)):
            if speech.sent + size > self._position(speech, now) + self._lead:
                break
            writes += self._send(speech, size, now)
        return writes

    def reports(self, now: float) -> list[Report]:
        """Return what has happened since the last call, in order."""
        self._advance(now)
        reports, self._reports = self._reports, []
        return reports

    def next_at(self, now: float) -> float | None:
        """Return when ``due`` or ``reports`` has something next if nothing else happens."""
        self._advance(now)
        if self._clear or self._reports:
            return now
        if (speech := self._playing()) is None:
            return None
        if size := self._ready(speech):
            awaited = speech.sent + size - self._lead
        elif speech.length is not None and not self.echoes:
            awaited = speech.end
        else:
            return None
        if awaited <= self._position(speech, now):
            return now
        if awaited > self._limit(speech):
            return None
        return max(now, speech.anchored_at + (awaited - speech.anchor) / self._bytes_per_s)

    def _playing(self) -> _Speech | None:
        able = self._attached and not self._paused and self._speeches
        return self._speeches[0] if able else None

    def _ready(self, speech: _Speech) -> int:
        """Return the size of the next chunk: whole frames."""
        unsent = speech.end - speech.sent
        return min(unsent - unsent % self._frame, self._chunk)

    def _position(self, speech: _Speech, now: float) -> int:
        """Return where the far end is by its last echo and the clock."""
        width = len(self._silence)
        samples = round((now - speech.anchored_at) * self._bytes_per_s / width)
        return min(speech.anchor + samples * width, self._limit(speech))

    def _limit(self, speech: _Speech) -> int:
        """Return the position that cannot have been passed without an echo."""
        return speech.marks[0].position if self.echoes and speech.marks else speech.sent

    def _run_dry(self, speech: _Speech) -> bool:
        return speech.heard == speech.sent and not (self.echoes and speech.marks)

    def _advance(self, now: float) -> None:
        """Bring the heard position up to ``now``.

        It never goes back, even if the first echo shows that the clock was ahead.
        """
        while self._speeches:
            speech = self._speeches[0]
            newly = max(0, self._position(speech, now) - speech.heard)
            del speech.unheard[:newly]
            speech.heard += newly
            if speech.length is None or speech.unheard or not self._run_dry(speech):
                return
            self._finish(now, interrupted=False)

    def _send(self, speech: _Speech, size: int, now: float) -> tuple[Send, Mark]:
        if self._run_dry(speech):
            self._report_run(speech, now)
            speech.anchor, speech.anchored_at = speech.sent, now
            speech.left_at = now - speech.sent / self._bytes_per_s
            speech.echoed_at.clear()
        if not speech.started:
            speech.started = True
            self._reports.append(Started(now))
        speech.cleared = False
        first = speech.sent - speech.heard
        speech.sent += size
        self._last_mark += 1
        mark = Mark(f"{self._marks}g{self._generation}.{self._last_mark}")
        speech.marks.append(_SentMark(mark.name, speech.sent, now))
        return Send(bytes(speech.unheard[first : first + size])), mark

    def _take_back(self, now: float) -> None:
        """Have the far end drop its queue, and send from the heard position next time."""
        if not self._speeches or not (speech := self._speeches[0]).started:
            return
        self._report_run(speech, now)
        self._generation += 1
        speech.marks.clear()
        speech.sent = speech.anchor = speech.heard
        self._pad(speech)
        if self._attached and not speech.cleared:
            speech.cleared = True
            self._clear = Clear(speech.spoken / self._bytes_per_s)

    def _pad(self, speech: _Speech) -> None:
        """Fill up a complete speech, so that whole frames are left to send."""
        if speech.length is not None:
            del speech.unheard[max(0, speech.length - speech.heard) :]
            missing = -(speech.end - speech.sent) % self._frame
            speech.unheard += self._silence * (missing // len(self._silence))

    def _finish(self, now: float, *, interrupted: bool) -> None:
        speech = self._speeches.popleft()
        self._report_run(speech, now)
        self._reports.append(Finished(speech.spoken / self._bytes_per_s, interrupted))

    def _report_run(self, speech: _Speech, now: float) -> None:
        if (run := self._run(speech, now)) is not None:
            self._reports.append(run)
            speech.run = speech.spoken

    def _run(self, speech: _Speech, now: float) -> Progressed | None:
        if (heard := speech.spoken - speech.run) <= 0:
            return None
        played_at = speech.played_at
        duration_s = heard / self._bytes_per_s
        started_at = min(now, played_at + speech.spoken / self._bytes_per_s) - duration_s
        offset_s = speech.run / self._bytes_per_s
        return Progressed(started_at, offset_s, duration_s, bool(speech.echoed_at))

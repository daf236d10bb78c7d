"""A far end that plays what it gets in real time and echoes marks, on a simulated clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from worker.streams.playout import Clear, Mark, Playout, Report, Send, Write


@dataclass
class FarEnd:
    """Plays ``bytes_per_s`` (its own clock's). Zero delay; ``now`` is the time played up to."""

    bytes_per_s: float
    now: float = 0.0
    queue: deque[bytes | str] = field(default_factory=deque)
    heard: bytearray = field(default_factory=bytearray)
    dry_s: float = 0.0

    @property
    def queued_s(self) -> float:
        return sum(len(item) for item in self.queue if isinstance(item, bytes)) / self.bytes_per_s

    def next_mark_at(self) -> float | None:
        ahead = 0
        for item in self.queue:
            if isinstance(item, str):
                return self.now + ahead / self.bytes_per_s
            ahead += len(item)
        return None

    def play_until(self, now: float) -> list[str]:
        """Play, and return the names of marks that were reached."""
        echoes = []
        while self.queue:
            head = self.queue.popleft()
            if isinstance(head, str):
                echoes.append(head)
                continue
            playable = round((now - self.now) * self.bytes_per_s)
            played = head[: max(0, playable)]
            self.heard += played
            self.now += len(played) / self.bytes_per_s
            if len(played) < len(head):
                self.queue.appendleft(head[len(played) :])
                return echoes
        self.dry_s += max(0.0, now - self.now)
        self.now = max(self.now, now)
        return echoes

    def take(self, write: Write) -> list[str]:
        """Take one message, and return the marks that a clear echoes at once, as Twilio does."""
        match write:
            case Send(audio):
                self.queue.append(audio)
            case Mark(name):
                self.queue.append(name)
            case Clear():
                dropped = [item for item in self.queue if isinstance(item, str)]
                self.queue.clear()
                return dropped
        return []


class Rig:
    """Drives a Playout as its owner must, against a far end; messages take ``delay_s`` each way."""

    def __init__(
        self, playout: Playout, *, ppm: float = 0, delay_s: float = 0.0, echo: bool = True
    ) -> None:
        self.playout = playout
        self.far = FarEnd(8000 * (1 + ppm / 1e6))
        self.now = 0.0
        self.delay_s = delay_s
        self.echo = echo
        self.reports: list[Report] = []
        self.most_queued_s = 0.0
        self.writes: list[Write] = []
        self._down: deque[tuple[float, Write]] = deque()
        self._up: deque[tuple[float, str]] = deque()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        self.poll()
        for _ in range(200_000):
            times = [until, self.playout.next_at(self.now), self.far.next_mark_at()]
            times += [queue[0][0] for queue in (self._down, self._up) if queue]
            self.now = max(self.now, min(time for time in times if time is not None))
            self.step()
            if self.now >= until and self.playout.next_at(until) != until:
                return
        raise AssertionError("the playout is busy without end")

    def step(self) -> None:
        self._echo(self.far.play_until(self.now))
        while self._down and self._down[0][0] <= self.now:
            self._echo(self.far.take(self._down.popleft()[1]))
            self.most_queued_s = max(self.most_queued_s, self.far.queued_s)
        while self._up and self._up[0][0] <= self.now:
            self.playout.echoed(self._up.popleft()[1], self.now)
        self.poll()

    def poll(self) -> None:
        for write in self.playout.due(self.now):
            self.writes.append(write)
            self._down.append((self.now + self.delay_s, write))
        if not self.delay_s:
            while self._down:
                self._echo(self.far.take(self._down.popleft()[1]))
                self.most_queued_s = max(self.most_queued_s, self.far.queued_s)
        self.reports += self.playout.reports(self.now)

    def lose(self) -> None:
        self.playout.detach(self.now)
        self.far.queue.clear()
        self._down.clear()
        self._up.clear()
        self.poll()

    def _echo(self, names: list[str]) -> None:
        if self.echo:
            self._up.extend((self.now + self.delay_s, name) for name in names)

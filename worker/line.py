"""The line: the worker's interface to the far end of a call, independent of the transport.

``worker.call`` and the modules below it use this interface and know no kind of line. Only
``worker.entrypoint`` opens a room's line (``worker.room``), and only ``worker.streams.session`` a
stream's. tests/worker/lines has the same expectations of each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from livekit.agents import Agent, AgentSession, BackgroundAudioPlayer

from core.audio import Pcm
from core.jobs import CallBrief
from core.recordings.command import Command
from core.sound.reports import SoundReport
from core.transfers import TransferResult
from worker.endings import Cause

KEYS: Final = "0123456789*#ABCD"
"""A telephone's keys; the position of each is its event code (RFC 4733 §3.2)."""


@dataclass(frozen=True, slots=True)
class Rates:
    """A line's sample rates in Hz: what the session hears, and what it is to speak."""

    speech: int
    voice: int


class LineError(Exception):
    """An operation on the line failed. The call continues unchanged."""


class NotSupported(LineError):
    """This kind of line does not have the operation."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not supported on this kind of call")


class TransferFailed(Exception):
    """The transfer failed. ``reason`` is one of the timeline's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Listener(Protocol):
    """Receives a line's notifications about its far end, on the event loop.

    ``ringing``, ``answered`` and ``left`` are called at most once each.
    """

    def ringing(self) -> None:
        """The far end's phone rings."""

    def answered(self) -> None:
        """The far end can hear the agent."""

    def key(self, key: str) -> None:
        """The far end pressed one of KEYS."""

    def typed(self, text: str) -> None:
        """The far end wrote instead of speaking."""

    def interrupted(self) -> None:
        """The far end asks the agent to stop speaking."""

    def commanded(self, command: Command) -> None:
        """The API asks to pause, resume or mask; the line has made sure that it is the API."""

    def left(self, cause: Cause, detail: str) -> None:
        """The far end has left."""

    def lost(self, cause: Cause, detail: str) -> None:
        """The line is lost, and its own attempts to restore the connection have failed."""


class Consultation(Protocol):
    """The consultation of a human before a warm transfer. Call ``hold`` once; at last ``close``."""

    async def hold(self, ring: Callable[[], Awaitable[TransferResult]]) -> None:
        """Keep the caller on hold until caller and human hear each other.

        ``ring`` has the human dialled, and returns when they have answered or the dial has failed.
        Raises TransferFailed; the human is gone then, and the caller back with the agent.
        """

    @property
    def present(self) -> bool:
        """True while the human is on the line."""

    async def hang_up(self) -> None:
        """Hang up on the human if they are on the line. Bounded; raises nothing."""

    def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        """Yield the human's audio, as ``Line.hear`` does the far end's."""

    def close(self) -> None:
        """Stop watching the human."""


class Line(Protocol):
    """One call's far end. The order of calls: ``connect`` and ``meet``, ``start``, ``leave``.

    A line that does not have an operation raises NotSupported.
    """

    @property
    def rates(self) -> Rates:
        """The sample rates of the session's audio."""

    async def connect(self, listener: Listener) -> None:
        """Connect to where the far end is or will be. ``meet`` may be called meanwhile."""

    def taken_over(self) -> None:
        """Send nothing more: another agent has the call. The listener gets ``lost``."""

    def meet(self, brief: CallBrief) -> None:
        """Take from the brief who the far end is."""

    async def start(self, session: AgentSession[None], agent: Agent) -> None:
        """Start the session with the line's audio in both directions. This answers a caller.

        From now on the line notifies the listener, first of everything that has happened already.
        The session's audio output reports what was actually played (``playback_finished``).
        """

    async def joined(self) -> None:
        """Wait until the far end is on the line."""

    async def answered(self) -> None:
        """Wait until the far end can hear the agent."""

    @property
    def present(self) -> bool:
        """True while there is a far end to hang up on."""

    @property
    def delay_ms(self) -> float | None:
        """The delay between far end and worker, both directions together; None if unknown."""

    @property
    def usual_delay_ms(self) -> float:
        """The usual ``delay_ms`` of such a line, for as long as it is unknown."""

    @property
    def hidden_delay_ms(self) -> tuple[float, float]:
        """What is usually not in ``delay_ms``: from the far end to the worker, and back."""

    def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        """Yield the far end's audio at ``rate`` Hz until it leaves, at most ``piece_ms`` at a
        time."""

    def report_sound(self, to: Callable[[SoundReport], None]) -> None:
        """Call ``to`` with the far end's reports, on a line whose far end can report."""

    async def accompany(self, player: BackgroundAudioPlayer) -> None:
        """Play ``player`` beside the agent's voice. Raises LineError, TimeoutError."""

    async def press(self, key: str) -> None:
        """Play one of KEYS to the far end only. Raises LineError, TimeoutError."""

    async def refer(self, ask: Callable[[], Awaitable[TransferResult]]) -> TransferResult:
        """Do a cold transfer: ``ask`` makes the gateway refer the far end elsewhere."""

    def consult(
        self,
        brief: CallBrief,
        transfer_id: str,
        *,
        recorded: bool,
        on_connected: Callable[[], None],
        on_left: Callable[[str], None],
    ) -> Consultation:
        """Prepare a warm transfer. ``recorded``: caller and human will be recorded.

        ``on_connected`` is called when caller and human hear each other, ``on_left`` when the human
        leaves, at any time, with the line's reason.
        """

    async def dismiss(self, transfer_id: str) -> None:
        """Hang up on the human whom a former agent consulted, also if they are about to be dialled.
        Bounded; raises nothing."""

    async def drain(self) -> None:
        """Wait until the far end has heard everything that was sent."""

    async def hang_up(self, *, told: bool) -> None:
        """Hang up on the far end. ``told``: the call's record has the reason. Bounded; raises
        nothing."""

    async def fall_silent(self) -> None:
        """Stop sending. Bounded; raises nothing."""

    async def leave(self) -> None:
        """Close the line. Bounded; raises nothing."""

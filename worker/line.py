"""A line: how the worker holds the far end of a call, whatever carries it.

``worker.call`` and everything below it know lines, and no kind of line in particular. Only
``worker.entrypoint`` opens one. The room line (``worker.room``) is the one there is so far.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol

from livekit.agents import Agent, AgentSession, BackgroundAudioPlayer

from core.audio import Pcm
from core.jobs import CallBrief
from core.transfers import TransferResult
from worker.endings import Cause

KEYS: Final = "0123456789*#ABCD"
"""A telephone's keys; the position of each is its event code (RFC 4733 §3.2)."""


class LineError(Exception):
    """The line did not do it. The call goes on as it was."""


class NotSupported(LineError):
    """Lines of this kind never do it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not supported on this kind of call")


class TransferFailed(Exception):
    """The caller is not with a human. ``reason``: as on the timeline."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Listener(Protocol):
    """Told by a line what happens at its far end, on the event loop.

    ``ringing``, ``answered`` and ``left`` are called once at most.
    """

    def ringing(self) -> None:
        """The far end's phone rings."""

    def answered(self) -> None:
        """The far end can hear the agent."""

    def key(self, key: str) -> None:
        """The far end pressed one of KEYS."""

    def left(self, cause: Cause, detail: str) -> None:
        """The far end has left."""

    def lost(self, cause: Cause, detail: str) -> None:
        """The line is gone, and the line's own attempts to restore it are over."""


class Consultation(Protocol):
    """A human who is asked to take the call. ``hold`` once, then ``aclose``."""

    async def hold(self, ring: Callable[[], Awaitable[TransferResult]]) -> None:
        """Keep the caller on hold until caller and human hear each other.

        Raises TransferFailed: the human is gone, and the caller is back with the agent.
        ``ring`` has the human called, and returns when they have picked up, or will not.
        """

    @property
    def present(self) -> bool:
        """Whether the human is still there."""

    async def hang_up(self) -> None:
        """Send the human away, if there. Bounded; raises nothing."""

    async def aclose(self) -> None:
        """Stop watching the human."""


class Line(Protocol):
    """One call's far end. In a call's order: ``connect`` and ``meet``, ``start``, ``leave``.

    A kind of line that cannot do something raises NotSupported.
    """

    async def connect(self, listener: Listener) -> None:
        """Be where the far end is, or will be; who that is may be learned meanwhile."""

    def meet(self, brief: CallBrief) -> None:
        """Learn who the far end is."""

    async def start(self, session: AgentSession[None], agent: Agent) -> None:
        """Start the session with the line's audio, both ways; a caller is answered by that.

        From now on the listener is told of the far end, and first what it has done already. The
        session's audio output reports what was really played (``playback_finished``).
        """

    async def joined(self) -> None:
        """Until the far end is there."""

    async def answered(self) -> None:
        """Until the far end can hear the agent."""

    @property
    def present(self) -> bool:
        """Whether there is somebody to hang up on."""

    @property
    def delay_ms(self) -> float | None:
        """The delay between far end and worker, both directions together; None: not known."""

    def hear(self, rate: int) -> AsyncGenerator[Pcm]:
        """The far end's audio at ``rate`` Hz, 20 ms at a time, until it leaves."""

    async def accompany(self, player: BackgroundAudioPlayer) -> None:
        """Play it beside the agent's voice. Raises LineError, TimeoutError."""

    async def press(self, key: str) -> None:
        """Play one of KEYS to the far end, and to nobody else. Raises LineError, TimeoutError."""

    async def refer(self, ask: Callable[[], Awaitable[TransferResult]]) -> TransferResult:
        """A cold transfer: ``ask`` the gateway to send the far end elsewhere."""

    def consult(
        self,
        brief: CallBrief,
        transfer_id: str,
        *,
        on_connected: Callable[[], None],
        on_left: Callable[[str], None],
    ) -> Consultation:
        """A warm transfer. ``on_connected``: caller and human hear each other; ``on_left``: the
        human has left, with the line's reason, whenever that is."""

    async def drain(self) -> None:
        """Until the far end has heard what was said."""

    async def hang_up(self, *, told: bool) -> None:
        """Send the far end away. ``told``: the call's record says why. Bounded; raises nothing."""

    async def fall_silent(self) -> None:
        """Send nothing any more. Bounded; raises nothing."""

    async def leave(self) -> None:
        """Give the line up. Bounded; raises nothing."""

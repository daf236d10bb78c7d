"""An agent's first steps in a call that it takes over from one that was lost."""

from __future__ import annotations

from typing import Any, Protocol

from core.jobs import CallBrief
from core.models import CallEvent, now
from worker.endings import Cause
from worker.handover.transfer import Transfers
from worker.opening.opening import Opening, Speaker
from worker.opening.resumption import Resumption, resumption_of
from worker.privacy.control import RecordingControl
from worker.silence import Clocks
from worker.timing.call_clock import CallClock
from worker.tools.actions import ActionFailed
from worker.tools.digits import Keypad

# The line of an agent that has just come does not know yet that somebody is there.
_ANSWERED_BEFORE: dict[Cause, Cause] = {
    "caller_gave_up": "caller_hung_up",
    "ring_removed": "removed",
}


class Post(Protocol):
    def __call__(
        self, type: str, data: dict[str, Any] | None = None, *, id: str | None = None
    ) -> CallEvent: ...


class Conversing(Speaker, Protocol):
    """The part of worker.voice.conversation that a takeover uses."""

    async def said(self) -> None:
        """Wait until the last speech that nobody asked for is over."""

    async def note(self, text: str) -> None:
        """Let the brain's model know a fact that nobody said."""


class Takeover:
    """Of the agent of one call. For the call's first agent it does nothing of its own.

    ``resumption`` is None if the far end has met no agent before.
    """

    def __init__(self, brief: CallBrief, post: Post) -> None:
        self._call_id = brief.call_id
        self._so_far = brief.recovered
        self._post = post
        self._told = False
        self.resumption: Resumption | None = resumption_of(brief)

    @property
    def gives_up(self) -> bool:
        """True if agents were lost too often: the agent is to apologise and hang up."""
        return self._so_far is not None and self._so_far.give_up

    def begin(self, clock: CallClock) -> None:
        """Go on with the call's time, before anything is judged by it."""
        if self.resumption is not None:
            clock.answered(self.resumption.answered_at.timestamp())

    def restore(self, recording: RecordingControl, keys: Keypad) -> None:
        """Go on with the keys, and with what holds the recording back."""
        if self.resumption is not None:
            keys.restore(self.resumption.so_far.keys)
            recording.restore(self.resumption.so_far)

    def answered(self, clock: CallClock, clocks: Clocks) -> None:
        """The far end hears the agent: begin the call's time, or go on with it."""
        if self.resumption is None:
            clock.answered(self._post("call.answered").at.timestamp())
            clocks.start()
        else:
            clocks.start(passed_s=self.resumption.passed_s, told_s=self.resumption.told_s)

    def left(self, cause: Cause) -> Cause:
        """Return why the far end left a call that a former agent has had answered."""
        return cause if self.resumption is None else _ANSWERED_BEFORE.get(cause, cause)

    def started(self) -> None:
        """The agent could speak now, if somebody were there."""
        if self.resumption is None:
            self.resumed()

    def resumed(self) -> None:
        """Post that a lost agent is replaced, once. Call it with each speech that begins."""
        if self._so_far is None or self._told or self.gives_up:
            return
        self._told = True
        lost_ms = round((now() - self._so_far.lost_at).total_seconds() * 1000)
        epoch = self._so_far.epoch
        owed = self.resumption is not None and self.resumption.owed is not None
        facts = {"epoch": epoch, "lostMs": max(0, lost_ms), "unanswered": owed}
        self._post("agent.resumed", facts, id=f"{self._call_id}_resumed_{epoch}")

    async def open(
        self, opening: Opening, conversation: Conversing, keys: Keypad, transfers: Transfers | None
    ) -> None:
        """End or go on with a former agent's transfer, then begin the conversation."""
        if self.resumption is None:
            return await opening.run(conversation)
        transfer = self.resumption.so_far.transfer
        if transfer is not None and transfers is not None:
            try:
                return await transfers.take_over(transfer)
            except ActionFailed as failed:
                # The caller is back.
                await conversation.note(f"The transfer to a human has failed: {failed}. Say so.")
        await opening.run(conversation)
        await conversation.said()
        if not keys.resume() and self.resumption.owed is None:
            self.resumed()  # there was nothing to say

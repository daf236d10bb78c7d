"""The end of a call for its agent: it hangs up or not, reports, and leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from core.events import ended
from worker.endings import ENDINGS, REPLACED, Cause
from worker.handover.transfer import Transfers
from worker.handover.witness import Witness
from worker.line import Line
from worker.link.reporter import Reporter
from worker.privacy.control import RecordingControl
from worker.privacy.gate import Gate
from worker.pulse.standing import Standing
from worker.recording.recorder import Recorder
from worker.timing.call_clock import CallClock
from worker.voice.conversation import Conversation

_TOLD_WITHIN_S = 1.0
_SAID_LAST_WORDS: set[Cause] = {"agent_hung_up", "voicemail_reached", "consent_refused"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """``run`` may be called once. What the call has not begun when it ends is None."""

    line: Line
    reporter: Reporter
    standing: Standing
    clock: CallClock
    gate: Gate
    recording: RecordingControl
    recorder: Recorder | None
    conversation: Conversation | None
    transfers: Transfers | None
    witness: Witness | None
    stop_clocks: Callable[[], None]
    stop_ambience: Callable[[], Awaitable[None]]

    async def run(self, cause: Cause, detail: str) -> None:
        stays = self.witness is not None and self.witness.stays(cause)
        if not stays:
            self.stop_clocks()
        if self.transfers is not None:
            await self.transfers.aclose()
        conversation = self.conversation
        if ENDINGS[cause].lost is not None:
            # The next agent is told what is on the record by then.
            if conversation is not None:
                await conversation.conclude()
            await self.reporter.told(_TOLD_WITHIN_S)
        ending = await self.standing.ending(cause, detail)
        if conversation is not None:
            if ending.apologise and self.clock.answered_at is not None:
                await conversation.apologise()
            conversation.hung_up()
        if ending.apologise or (cause in _SAID_LAST_WORDS and ending != REPLACED):
            await self.line.drain()
        if ending.status is not None and ending.reason is not None:
            # Post before hanging up, so that the reason is recorded before LiveKit's webhook comes.
            self.reporter.post(
                "call.ended", ended(ending.status, ending.reason, cause=cause, detail=detail)
            )
        if ending.hang_up and self.line.present:
            # A leaving leg does not show the reason for the end, so the gateway has it first.
            told = self.clock.answered_at is not None and await self.reporter.told(_TOLD_WITHIN_S)
            await self.line.hang_up(told=told)
        await self.stop_ambience()
        await self.line.fall_silent()
        if self.recorder is not None and not stays:
            self.recorder.end()
        if conversation is not None:
            await conversation.aclose()
        self.gate.close()
        stopped = cause
        if self.witness is not None and stays:
            self.recording.deafened.clear()  # the agent is gone
            stopped = await self.witness.stay()
            self.stop_clocks()
        if self.recorder is not None:
            await self.recorder.finish(stopped)
        if self.transfers is not None:
            self.transfers.close()
        await self.line.leave()
        self.reporter.post("agent.left", {"cause": cause})

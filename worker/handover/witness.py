"""Goes on recording when a human has taken over the caller and the agent is gone.

The worker hears both and sends nothing. When either leaves, the gateway hangs up on the other, as
it does when nobody records.
"""

from __future__ import annotations

import asyncio

from core.jobs import CallBrief
from core.tasks.first_of import first_of
from worker.endings import Cause
from worker.recording.recorder import Hear, Recorder


def witness_of(
    brief: CallBrief, recorder: Recorder | None, draining: asyncio.Event
) -> Witness | None:
    """Return the witness of a call, or None if its recording ends with a transfer."""
    if recorder is None or brief.recording is None or not brief.recording.after_transfer:
        return None
    return Witness(recorder, draining)


class Witness:
    """Call ``begin`` when caller and human hear each other, ``stay`` when the agent is gone."""

    def __init__(self, recorder: Recorder, draining: asyncio.Event) -> None:
        """``draining`` is set when the worker is to stop: it must not wait for humans."""
        self._recorder = recorder
        self._draining = draining
        self._over: asyncio.Future[Cause] = asyncio.get_running_loop().create_future()
        self.begun = False

    @property
    def wanted(self) -> bool:
        """True if the call is being recorded, and the caller did not refuse it."""
        return self._recorder.may_go_on

    def begin(self, hear: Hear) -> None:
        """Record the human, if that is wanted. ``hear`` returns their audio."""
        if self.wanted:
            self._recorder.join(hear)
            self.begun = True

    def stays(self, cause: Cause) -> bool:
        """Return True if there is something to record when the call ends so for the agent."""
        return self.begun and cause == "handed_over"

    def over(self, cause: Cause) -> None:
        """One of the two has left, the line is lost, or time is up. The first cause counts."""
        if not self._over.done():
            self._over.set_result(cause)

    async def stay(self) -> Cause:
        """Wait until there is nothing more to record; return why. A cancellation ends the wait."""
        try:
            over, *_ = await first_of(self._over, self._draining.wait(), self._recorder.stopped())
        except asyncio.CancelledError:
            over = None
        return over or "worker_stopped"

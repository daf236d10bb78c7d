"""Transfers the caller to a human.

Cold: the gateway refers the caller's phone to the human. Warm: the gateway dials the human onto
the caller's line; the caller hears music, the human a briefing, and neither hears the other. When
the human accepts with a key or a word, they hear each other, and the agent leaves (its worker may
stay to record them: worker.handover.witness). In every other case the human's phone is hung up and
the caller is back with the agent. The line does either, or raises NotSupported (worker.line:
``refer``, ``consult``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from core.jobs import CallBrief
from core.models import new_id
from core.recovery import OpenTransfer
from core.transfers import TransferOrder, TransferResult, failure
from worker.endings import Cause
from worker.handover.witness import Witness
from worker.line import Consultation, Line, NotSupported, TransferFailed
from worker.link.backoff import Backoff
from worker.link.client import Refused, Unavailable
from worker.tools.actions import ActionFailed

log = logging.getLogger(__name__)

_ASK_LONGER_S = 20.0  # beyond the ringing time-out of the human's phone
_STOP_WITHIN_S = 15.0

_LOST = "agent_lost"
_WORDS = {
    _LOST: "a technical fault ended it",
    "busy": "the line is busy",
    "no_answer": "nobody picked up",
    "rejected": "the call was rejected",
    "invalid_destination": "the number cannot be reached",
    "not_allowed": "the number may not be called",
    "declined": "the human declined",
    "not_accepted": "the human did not take the call",
    "hung_up": "the human hung up",
    "call_over": "the call is over",
    "not_supported": "a call of this kind cannot be transferred",
}


class Transfers:
    """The transfers of one call, one at a time."""

    def __init__(
        self,
        brief: CallBrief,
        *,
        line: Line,
        ask: Callable[[TransferOrder], Awaitable[TransferResult]],
        post: Callable[..., object],
        delivered: Callable[[], Awaitable[None]],
        on_hold: Callable[[bool], None],
        on_over: Callable[[Cause, str], None],
        witness: Witness | None = None,
        ask_longer_s: float = _ASK_LONGER_S,
    ) -> None:
        """``ask`` asks the gateway for the transfer and raises Unavailable or Refused.

        ``delivered`` waits until the gateway has everything that was posted. ``on_hold`` is called
        when the caller is put on hold or taken off it.
        """
        self._brief = brief
        self._config = brief.agent.config
        self._line = line
        self._ask = ask
        self._post = post
        self._delivered = delivered
        self._on_hold = on_hold
        self._on_over = on_over
        self._witness = witness
        self._ask_within_s = brief.agent.config.transfer_ringing_ms / 1000 + ask_longer_s
        self._task: asyncio.Task[None] | None = None
        self._dismissing: asyncio.Task[None] | None = None
        self._referring = False
        self._consultation: Consultation | None = None
        self._connected = False
        self._caller_gone: tuple[Cause, str] | None = None

    @property
    def under_way(self) -> bool:
        """True from the request until the caller is back with the agent or the call ends."""
        return self._connected or (self._task is not None and not self._task.done())

    async def transfer(self) -> None:
        """Transfer the caller. Returns when the call is over for the agent.

        Raises ActionFailed when the caller stays with the agent. Cancelling this call does not
        cancel the transfer.
        """
        await self._begin(new_id("trf"))

    async def take_over(self, open_: OpenTransfer) -> None:
        """Go on with a transfer of a former agent's, as ``transfer`` does.

        A phone that is being referred cannot be called back: wait for the outcome. Of a
        consultation only the agent that began it knows how far it is, so it ends.
        """
        if open_.mode == "cold":
            return await self._begin(open_.transfer_id)
        self._post("transfer.failed", failure(_LOST), id=f"{open_.transfer_id}_transfer.failed")
        self._dismissing = asyncio.create_task(self._line.dismiss(open_.transfer_id))
        raise ActionFailed(_WORDS[_LOST])

    async def _begin(self, transfer_id: str) -> None:
        if self.under_way:
            raise ActionFailed("a transfer is already in progress")
        task = self._task = asyncio.create_task(self._transfer(transfer_id), name="transfer")
        task.add_done_callback(_seen)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ActionFailed(_WORDS["call_over"]) from None
            raise

    def caller_left(self, cause: Cause, detail: str) -> None:
        """Decide what the caller's leaving means: a referred phone leaves as if it had hung up."""
        if self._referring:
            self._caller_gone = cause, detail
        elif self._connected:
            self._on_over("transfer_ended", detail)
        else:
            self._on_over(cause, detail)

    async def aclose(self) -> None:
        """End the call's transfer: hang up on a human who has not taken the call."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_STOP_WITHIN_S)
        if self._dismissing is not None:
            self._dismissing.cancel()  # the gateway hangs up on a human whose caller has left

    def close(self) -> None:
        """Stop watching a human who has taken the call."""
        if self._consultation is not None:
            self._consultation.close()

    async def _transfer(self, transfer_id: str) -> None:
        order = TransferOrder(transfer_id=transfer_id)
        self._on_hold(True)
        reason = "failed"
        try:
            if self._config.transfer_mode == "cold":
                await self._refer(order)
            else:
                await self._consult(order)
            reason = ""
        except asyncio.CancelledError:
            reason = "call_over"
            raise
        except (TransferFailed, NotSupported) as failed:
            reason = failed.reason if isinstance(failed, TransferFailed) else "not_supported"
            raise ActionFailed(_WORDS.get(reason, "it did not work")) from None
        finally:
            if reason and not self._connected:
                # If the gateway wrote this event first, with the SIP status, its version stays.
                failed_id = f"{order.transfer_id}_transfer.failed"
                self._post("transfer.failed", failure(reason), id=failed_id)
                self._on_hold(False)

    async def _ordered(self, order: TransferOrder) -> TransferResult:
        """Ask the gateway and return its answer. Retries are idempotent, as the order has an id."""
        backoff = Backoff(longest=2.0)
        try:
            async with asyncio.timeout(self._ask_within_s):
                while True:
                    try:
                        return await self._ask(order)
                    except Unavailable:
                        await backoff.wait()
        except (Refused, TimeoutError) as error:
            log.warning("no transfer", extra={"problem": str(error) or type(error).__name__})
            return TransferResult(outcome="failed")

    # --- cold

    async def _refer(self, order: TransferOrder) -> None:
        self._referring = True
        try:
            result = await self._line.refer(partial(self._ordered, order))
        finally:
            self._referring = False
        if result.outcome == "transferred":
            return self._on_over("referred", "")
        if self._caller_gone is not None:
            self._on_over(*self._caller_gone)
        raise TransferFailed(result.outcome)

    # --- warm

    async def _consult(self, order: TransferOrder) -> None:
        consultation = self._consultation = self._line.consult(
            self._brief,
            order.transfer_id,
            recorded=self._witness is not None and self._witness.wanted,
            on_connected=self._together,
            on_left=self._human_left,
        )
        try:
            await consultation.hold(partial(self._ordered, order))
            # Stay until the gateway knows that it has to follow the call to its end.
            await self._delivered()
        except asyncio.CancelledError:
            # Something else ended the call, so hang up on the human here.
            await consultation.hang_up()
            raise
        finally:
            if not self._connected:
                consultation.close()
        self._on_over("handed_over" if consultation.present else "transfer_ended", "")

    def _together(self) -> None:
        self._connected = True
        if self._witness is not None and self._consultation is not None:
            self._witness.begin(self._consultation.hear)
        self._post("transfer.accepted")
        self._post("call.transferred", {"to": self._config.transfer_number, "mode": "warm"})

    def _human_left(self, detail: str) -> None:
        if self._connected:
            self._on_over("transfer_ended", detail)


def _seen(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, ActionFailed):
        log.error("a transfer failed", exc_info=error)

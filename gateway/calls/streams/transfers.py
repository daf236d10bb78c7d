"""Cold transfers of Twilio's calls: Twilio's REST API makes the live call dial the human.

The TwiML is ``<Dial action=…><Number statusCallback=…>``. Twilio tells the number's status callback
that the human has answered, and asks the action what comes next when the human's leg has ended, or
nobody answered (twilio.com/docs/voice/twiml/dial, …/number). It is not documented which of the two
comes first after a short talk, nor whether the action is asked when the caller hangs up before the
human answers. So either decides, and only the first word counts; if neither comes, nobody answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from core.errors import AppError, Unavailable
from core.transfers import Outcome, TransferResult
from gateway.calls.streams import twiml
from gateway.calls.streams.twilio import TwilioSessions
from gateway.calls.timeline import POLL_S, Timeline
from gateway.calls.transfer_timeline import Order, Steps
from gateway.numbers.accounts import Accounts
from gateway.numbers.twilio import NotThere
from gateway.numbers.twilio_calls import CallOver
from gateway.store.calls import Store
from gateway.store.database import Scope
from gateway.store.streams.sessions import SessionStore

log = logging.getLogger(__name__)

# Twilio dials a moment after the request, and adds a few seconds to the ringing time.
_TOLD_WITHIN_S = 15.0

_OUTCOMES: Mapping[str, Outcome] = {
    "completed": "transferred",
    "answered": "transferred",
    "busy": "busy",
    "no-answer": "no_answer",
}


def outcome_of(dial_call_status: str) -> TransferResult:
    """Return the result by the action's DialCallStatus."""
    return TransferResult(outcome=_OUTCOMES.get(dial_call_status, "failed"))


class TwilioTransfers:
    def __init__(
        self,
        *,
        store: Store,
        sessions: SessionStore,
        timeline: Timeline,
        accounts: Accounts,
        twilio: TwilioSessions,
        told_within_s: float = _TOLD_WITHIN_S,
    ) -> None:
        """``told_within_s``: how long Twilio's callbacks may take, beside the ringing."""
        self._store = store
        self._sessions = sessions
        self._timeline = timeline
        self._accounts = accounts
        self._twilio = twilio
        self._steps = Steps(store, timeline)
        self._told_within_s = told_within_s

    async def dial(self, order: Order, caller_id: str) -> TransferResult:
        """Let Twilio dial the human; return the outcome. The policy has been asked.

        ``not_supported``: it is no call of Twilio's, or its account's auth token is not known.
        """
        session = await self._sessions.find(order.call.id)
        if session is None or session.account_sid is None or session.call_sid is None:
            return TransferResult(outcome="not_supported")
        secret = await self._accounts.named(Scope(order.call.auth_id), session.account_sid)
        if secret is None:
            return TransferResult(outcome="not_supported")
        text = twiml.dial(
            order.to,
            caller_id=caller_id,
            ringing_s=order.ringing_s,
            action_url=self._twilio.callback(order.call.id, "transfer", transfer=order.id),
            status_url=self._twilio.callback(order.call.id, "transfer/status", transfer=order.id),
        )
        try:
            await self._accounts.calls_of(secret).run_twiml(session.call_sid, text)
        except (CallOver, NotThere):
            return TransferResult(outcome="failed")
        except Unavailable as error:
            # Twilio may dial all the same.
            facts = {"call_id": order.call.id, "problem": error.code}
            log.warning("it is not known whether Twilio transfers", extra=facts)
        return await self._outcome(order)

    async def _outcome(self, order: Order) -> TransferResult:
        """Wait for Twilio's callbacks, at whichever gateway; they write the outcome."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + order.ringing_s + self._told_within_s
        async with self._timeline.listen(order.call.id) as news:
            while (left := deadline - clock.time()) > 0:
                try:
                    _, result = await self._steps.known(order)
                    call = await self._store.call(Scope(None), order.call.id)
                except AppError:
                    left = min(left, POLL_S)
                else:
                    if result is not None:
                        return result
                    if call is None or call.ended:
                        return TransferResult(outcome="failed")
                await news.wait(left)
        return TransferResult(outcome="no_answer")

"""Begin an attempt of a task: check it as every call is checked, record it, ask Twilio for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from core.errors import (
    AppError,
    Forbidden,
    TooManyRequests,
    Unavailable,
    Unprocessable,
)
from core.models import Agent, CallEvent, PhoneNumber, new_id, now
from core.settings import Settings
from gateway.calls.limits import CallLimits
from gateway.calls.policy import DialPolicy
from gateway.calls.streams.sessions import CALLER
from gateway.calls.streams.twiml import ASK_AGAIN
from gateway.calls.tasks.outcome import finished
from gateway.calls.tasks.progress import NEVER_PLACED, News, Progress
from gateway.calls.trunks import may_call_out
from gateway.calls.variables import fill
from gateway.lookup.agents import Agents, check_takes_calls
from gateway.numbers.accounts import Accounts
from gateway.numbers.twilio_calls import InvalidDestination, TwilioCalls
from gateway.store.call_status import Call
from gateway.store.calls import NewCall
from gateway.store.database import Scope
from gateway.store.numbers import NumberStore
from gateway.store.streams.tasks import Task, TaskStore
from gateway.store.webhooks import WebhookStore
from sip.dial import DialOutcome

log = logging.getLogger(__name__)

RINGING_S = 30
"""As long as the phones of other outbound calls ring by default."""

ASKED_WITHIN = timedelta(seconds=10)
"""Twilio is asked within this time after the attempt was stored, or not at all: a gateway that was
suspended in between must not place a call that another gateway has given up."""

_LOOK_AGAIN = timedelta(seconds=5)
_NO_CALLBACK_AFTER = timedelta(seconds=RINGING_S + 15)


class Dialler:
    def __init__(
        self,
        *,
        tasks: TaskStore,
        agents: Agents,
        numbers: NumberStore,
        webhooks: WebhookStore,
        accounts: Accounts,
        policy: DialPolicy,
        limits: CallLimits,
        progress: Progress,
        settings: Settings,
        resume_url: Callable[[str], str],
        clock: Callable[[], datetime] = now,
    ) -> None:
        """``resume_url``: of a call's id, where Twilio asks how the call goes on."""
        self._tasks = tasks
        self._agents = agents
        self._numbers = numbers
        self._webhooks = webhooks
        self._accounts = accounts
        self._policy = policy
        self._limits = limits
        self._progress = progress
        self._callbacks = f"{settings.public_base_url}/v1/sessions/twilio/task"
        self._resume_url = resume_url
        self._clock = clock

    async def dial(self, task: Task, lease: str) -> None:
        """Begin the task's next attempt, or store why there is none (yet). Raises Unavailable."""
        if self._clock() > task.until:
            return await self._fail(task, lease, task.failure or "EXPIRED")
        try:
            agent = await self.admit(task)
            account = await self._accounts.calls(Scope(task.auth_id), task.credential_id)
            await self._limits.check_place("stream")
            await self._limits.check(task.auth_id, with_agent=True, kind="stream")
            await self._limits.take(task.auth_id)
        except (TooManyRequests, Unavailable) as error:
            return await self._postpone(task, lease, error)
        except AppError as error:
            return await self._fail(task, lease, error.code)
        begun = await self._tasks.begin(task, lease, new_id("call"))
        if begun is None:
            await self._tasks.keep(task, lease)
            return
        try:
            call = await self._record(begun, agent)
        except (TooManyRequests, Unavailable) as error:
            if error.code == "STORE_UNAVAILABLE":
                raise
            undone = {"call_id": None, "attempts": task.attempts, "calls": task.calls}
            return await self._postpone(begun, lease, error, status="queued", **undone)
        await self._ask(begun, lease, call, agent, account)

    async def admit(self, task: Task) -> Agent:
        """Check what may have changed since the task was made; return the agent as it is now.

        Raises NotFound, Conflict, Forbidden, Unprocessable.
        """
        scope = Scope(task.auth_id)
        agent = await self._agents.require(scope, task.agent_id)
        await check_takes_calls(agent, task.auth_id, self._webhooks, record=task.wanted.record)
        number = await self._numbers.get(scope, task.phone_number_id)
        if number is None or not calls_by_twilio(number):
            raise not_a_caller_id()
        self._policy.check(
            task.to_number, from_number=task.from_number, tenant=task.auth_id is not None
        )
        return fill(agent, variables_of(task))

    async def _record(self, task: Task, agent: Agent) -> Call:
        """Store the record of the attempt's call. Raises TooManyRequests, Unavailable."""
        assert task.call_id is not None
        new = NewCall(
            id=task.call_id,
            auth_id=task.auth_id,
            direction="outbound",
            type="stream",
            room_name=task.call_id,
            participant_identity=CALLER,
            from_number=task.from_number,
            to_number=task.to_number,
            max_duration_ms=agent.config.max_duration_ms,
            agent=agent,
            phone_number_id=task.phone_number_id,
            metadata=metadata_of(task),
            record=task.wanted.record,
        )
        return await self._limits.insert(new, CallEvent(type="call.queued"), on_record=False)

    async def _ask(
        self, task: Task, lease: str, call: Call, agent: Agent, account: TwilioCalls
    ) -> None:
        """Ask Twilio for the call. The policy has been asked by ``dial``."""
        if self._clock() - (task.asked_at or self._clock()) > ASKED_WITHIN:
            log.warning("a task's call was not placed in time", extra={"call_id": call.id})
            return
        status_url = self._url(task, call, "status")
        try:
            placed = await account.place_call(
                to=task.to_number,
                from_=task.from_number,
                url=self._url(task, call, "connect"),
                fallback_url=self._resume_url(call.id),
                status_url=status_url,
                ringing_s=RINGING_S,
                machine_url=status_url if minds_machines(agent) else None,
            )
        except InvalidDestination as error:
            outcome = DialOutcome(status="failed", reason="invalid_destination")
            return await self._refused(task, lease, call, outcome, f"Twilio error {error}")
        except Unprocessable as error:
            note = error.details[0].message if error.details else error.message
            return await self._refused(task, lease, call, NEVER_PLACED, note)
        except Unavailable:
            # Twilio may have placed the call.
            await self._tasks.keep(task, lease, due_at=self._clock() + _LOOK_AGAIN)
            return
        await self._tasks.learn(task.id, call.id, placed.sid)
        await self._progress.write(call, News(placed.sid, placed.status), streamed=False)
        await self._tasks.keep(task, lease, due_at=self._clock() + _NO_CALLBACK_AFTER)

    async def _refused(
        self, task: Task, lease: str, call: Call, outcome: DialOutcome, note: str
    ) -> None:
        await self._progress.never_placed(call, outcome, note)
        await self._tasks.keep(task, lease, call_status="failed", due_at=self._clock())

    async def _postpone(
        self, task: Task, lease: str, error: TooManyRequests | Unavailable, **values: Any
    ) -> None:
        wait = timedelta(seconds=int(error.headers["Retry-After"]))
        due_at = self._clock() + wait
        await self._tasks.keep(task, lease, failure=error.code, due_at=due_at, **values)

    async def _fail(self, task: Task, lease: str, failure: str) -> None:
        log.warning("a task failed", extra={"task_id": task.id, "problem": failure})
        await self._tasks.keep(task, lease, **finished(self._clock(), "failed", failure))

    def _url(self, task: Task, call: Call, what: str) -> str:
        """Return a callback's URL; it names the attempt, whose SID may not be known yet."""
        query = urlencode({"call": call.id})
        return f"{self._callbacks}/{task.id}/{what}?{query}#{ASK_AGAIN}"


def calls_by_twilio(number: PhoneNumber) -> bool:
    """Return True if calls can be placed from the number by Twilio's REST API."""
    return number.provider == "twilio" and number.credential_id is not None and may_call_out(number)


def not_a_caller_id() -> Forbidden:
    """Return the one error for numbers that are not the tenant's and numbers that may not call."""
    return Forbidden("Tasks cannot call from this number", code="FROM_NUMBER_NOT_ALLOWED")


def minds_machines(agent: Agent) -> bool:
    """Return True if the agent does something else when a machine answers.

    It listens for machines itself and acts on that alone; Twilio's opinion, which Twilio charges
    for, is only recorded.
    """
    return agent.config.voicemail_policy != "continue" or agent.config.on_ivr != "continue"


def variables_of(task: Task) -> dict[str, str | None]:
    """Return the variables for the agent's texts: the request's, ``goal`` and ``instanceId``."""
    wanted = task.wanted
    named = {"goal": wanted.goal, "instanceId": wanted.instance_id}
    return {**wanted.variables, **{name: value for name, value in named.items() if value}}


def metadata_of(task: Task) -> dict[str, Any]:
    named = {"taskId": task.id, "goal": task.wanted.goal, "instanceId": task.wanted.instance_id}
    return {**task.wanted.metadata, **{name: value for name, value in named.items() if value}}

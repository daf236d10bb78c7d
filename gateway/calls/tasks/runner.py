"""The runner: each gateway takes steps with the tasks that are due, as long as it lives.

A step begins an attempt, looks how a call does that Twilio has not reported on, or decides what
comes after a call's end. A step that fails is repeated when its lease expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from core.errors import AppError, Unavailable
from core.models import now
from gateway.calls.tasks.dialler import Dialler
from gateway.calls.tasks.outcome import after
from gateway.calls.tasks.progress import FINAL, NEVER_PLACED, News, Progress
from gateway.numbers.accounts import Accounts
from gateway.numbers.twilio import NotThere
from gateway.numbers.twilio_calls import TwilioCall, TwilioCalls
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.database import Scope
from gateway.store.streams.sessions import SessionStore
from gateway.store.streams.tasks import STEP_S, Task, TaskStore

log = logging.getLogger(__name__)

SLOTS = 32
POLL_S = 1.0
"""Another gateway may have added a task, or a retry may have become due."""

PLACED_WITHIN = timedelta(seconds=60)
"""A call that Twilio does not list by then was not placed."""
_SKEW = timedelta(seconds=5)
"""Between our clock and Twilio's; a task is repeated later than that."""
_LOOK_AGAIN = timedelta(seconds=10)
_LOOK_WHILE_RINGING = timedelta(seconds=30)
_LOOK_WHILE_TALKING = timedelta(minutes=5)
_REPORTED_WITHIN = timedelta(seconds=60)
_GIVE_UP = timedelta(hours=1)
"""Twilio's account cannot be reached any more, or gives contradictory answers."""


class TaskRunner:
    """Takes steps while ``run`` runs; call ``aclose`` afterwards."""

    def __init__(
        self,
        *,
        tasks: TaskStore,
        store: Store,
        sessions: SessionStore,
        accounts: Accounts,
        dialler: Dialler,
        progress: Progress,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._sessions = sessions
        self._accounts = accounts
        self._dialler = dialler
        self._progress = progress
        self._clock = clock
        self._steps: set[asyncio.Task[None]] = set()
        self.bell = asyncio.Event()
        """Set when a task may be due."""

    async def run(self) -> None:
        """Take steps until cancelled. A round that fails is logged, and the next one is tried."""
        while True:
            self.bell.clear()
            try:
                await self._begin_steps()
            except AppError as error:
                log.warning("tasks have to wait", extra={"problem": error.code})
            except Exception:
                log.exception("tasks have to wait")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.bell.wait()

    async def aclose(self, grace_s: float = 5.0) -> None:
        """Let the steps under way finish; what is cut off goes on when its lease expires."""
        if self._steps:
            await asyncio.wait(self._steps, timeout=grace_s)
        for step in self._steps:
            step.cancel()
        await asyncio.gather(*self._steps, return_exceptions=True)

    async def _begin_steps(self) -> None:
        free = SLOTS - len(self._steps)
        if free <= 0:
            return
        lease, due = await self._tasks.claim(free)
        for task in due:
            step = asyncio.create_task(self._guarded(task, lease), name=task.id)
            self._steps.add(step)
            step.add_done_callback(self._steps.discard)

    async def _guarded(self, task: Task, lease: str) -> None:
        facts = {"task_id": task.id}
        try:
            async with asyncio.timeout(STEP_S):
                await self._step(task, lease)
        except (AppError, TimeoutError) as error:
            problem = error.code if isinstance(error, AppError) else "TimeoutError"
            log.warning("a task's step failed", extra={**facts, "problem": problem})
        except Exception:
            log.exception("a task's step failed", extra=facts)
        finally:
            self.bell.set()

    async def _step(self, task: Task, lease: str) -> None:
        if task.call_id is None:
            if task.finished:
                await self._tasks.keep(task, lease, due_at=None)
            else:
                await self._dialler.dial(task, lease)
            return
        call = await self._store.call(Scope(None), task.call_id)
        if call is None:
            # The record is written before Twilio is asked: there was no call.
            undone = {"attempts": task.attempts - 1, "calls": task.calls[:-1], "call_id": None}
            again = {} if task.finished else {"status": "queued"}
            await self._tasks.keep(task, lease, due_at=self._clock(), **undone, **again)
            return
        try:
            account = await self._accounts.calls(Scope(task.auth_id), task.credential_id)
            wait = await self._follow(task, call, account)
        except (AppError, NotThere) as error:
            if self._age(task) > _GIVE_UP and (call.ended or call.answered_at is None):
                return await self._give_up(task, lease, call)
            problem = error.code if isinstance(error, AppError) else "NOT_THERE"
            facts = {"task_id": task.id, "problem": problem}
            log.warning("Twilio says nothing about a task's call", extra=facts)
            wait = _LOOK_AGAIN
        if wait is not None:
            until = self._clock() + wait
            # A call that has ended would make the task due at once.
            rest = {"leased_until": until} if call.ended else {}
            await self._tasks.keep(task, lease, due_at=until, **rest)
            return
        over = await self._store.call(Scope(None), call.id) or call
        await self._tasks.keep(task, lease, **after(task, over, self._clock()))

    def _age(self, task: Task) -> timedelta:
        """Return the time since Twilio was asked for the attempt's call."""
        return self._clock() - (task.asked_at or self._clock())

    async def _follow(self, task: Task, call: Call, account: TwilioCalls) -> timedelta | None:
        """Look how the attempt's call does. Return when to look again; None: it is over.

        Raises AppError if Twilio does not tell.
        """
        if task.call_status in FINAL and call.ended:
            return None
        sid = task.call_sid
        if sid is None:
            found = await self._find(task, account)
            if found is None:
                if self._age(task) <= PLACED_WITHIN:
                    return _LOOK_AGAIN
                await self._progress.never_placed(call, NEVER_PLACED, "Twilio has no such call")
                return None
            sid = found.sid
            if await self._tasks.learn(task.id, call.id, sid) is None:
                return timedelta()  # a callback was faster
        session = await self._sessions.find(call.id)
        attached = session is not None and session.attached
        if call.ended:
            if not attached or task.status == "canceled":
                await account.hang_up(sid)
            return None
        seen = await account.call(sid)
        news = News(sid, "failed" if seen is None else seen.status)
        await self._progress.write(call, news, streamed=attached)
        if news.status not in FINAL:
            talking = news.status == "in-progress"
            return _LOOK_WHILE_TALKING if talking else _LOOK_WHILE_RINGING
        if attached and news.status == "completed":
            if task.call_status != "completed":
                # The worker reports the end, and why.
                await self._tasks.learn(task.id, call.id, sid, status="completed")
                return _REPORTED_WITHIN
            await self._progress.left(call)
        return None

    async def _find(self, task: Task, account: TwilioCalls) -> TwilioCall | None:
        """Find the call of an attempt whose outcome is unknown; None: there is none so far.

        Raises Unavailable if more than one call may be it.
        """
        since = (task.asked_at or self._clock()) - _SKEW
        calls = await account.calls(to=task.to_number, from_=task.from_number, since=since)
        others = await self._tasks.known([call.sid for call in calls])
        found = [call for call in calls if call.sid not in others]
        if len(found) > 1:
            raise Unavailable("More than one call may be the task's", code="CALL_AMBIGUOUS")
        return found[0] if found else None

    async def _give_up(self, task: Task, lease: str, call: Call) -> None:
        """Finish a task whose call cannot be followed; it is not repeated: it may have rung."""
        await self._progress.never_placed(call, NEVER_PLACED, "its outcome is not known")
        values = {**after(task, call, self._clock()), "status": "failed"}
        values |= {"failure": "OUTCOME_UNKNOWN", "due_at": None, "ended_at": self._clock()}
        await self._tasks.keep(task, lease, **values)

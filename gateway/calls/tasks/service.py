"""Tasks as the API and Twilio see them: make one, cancel it, and take Twilio's callbacks."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from core.errors import AppError, Conflict, Forbidden
from gateway.calls.tasks.dialler import Dialler
from gateway.calls.tasks.progress import LIVE, News, Progress
from gateway.calls.tasks.runner import TaskRunner
from gateway.numbers.accounts import Accounts
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.credentials import TwilioSecret
from gateway.store.database import Scope
from gateway.store.streams.sessions import SessionStore
from gateway.store.streams.tasks import Task, TaskStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt that a callback's URL names, and the Twilio account that must have signed it."""

    task: Task
    call_id: str
    account: TwilioSecret


class Tasks:
    def __init__(
        self,
        *,
        tasks: TaskStore,
        store: Store,
        sessions: SessionStore,
        accounts: Accounts,
        dialler: Dialler,
        progress: Progress,
        runner: TaskRunner,
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._sessions = sessions
        self._accounts = accounts
        self._dialler = dialler
        self._progress = progress
        self._runner = runner

    def wake(self) -> None:
        """Let the runner look for due tasks now."""
        self._runner.bell.set()

    async def add(self, task: Task) -> None:
        """Store a task; it is dialled soon. Raises what every call of it would raise at once:

        NotFound, Conflict (the agent), Forbidden (the numbers), Unprocessable (the variables).
        """
        await self._dialler.admit(task)
        await self._tasks.add(task)
        self.wake()

    async def cancel(self, task: Task) -> Task:
        """Cancel a task, and end its call if that has not been answered.

        Raises Conflict ``TASK_FINISHED``, ``CALL_ANSWERED``.
        """
        call = await self._call(task.call_id)
        if call is not None and call.answered_at is not None and not call.ended:
            raise Conflict("The call was answered: end the call itself", code="CALL_ANSWERED")
        canceled = await self._tasks.cancel(task.id)
        if canceled is None:
            raise Conflict("The task is finished", code="TASK_FINISHED")
        # The attempt may have begun a moment ago.
        if (call := await self._call(canceled.call_id)) is not None:
            await self._progress.canceled(call)
        self.wake()
        return canceled

    # --- Twilio's callbacks

    async def attempt(self, task_id: str, call_id: str) -> Attempt:
        """Find an attempt. Raises Forbidden, the same error for all that Twilio cannot have sent.

        The URL is signed with the tenant's own token, so it proves nothing about the call in it.
        """
        task = await self._tasks.find(Scope(None), task_id)
        if task is None or call_id not in task.calls:
            raise not_signed()
        try:
            account = await self._accounts.login(Scope(task.auth_id), task.credential_id)
        except AppError:
            raise not_signed() from None
        return Attempt(task, call_id, account)

    async def report(self, attempt: Attempt, news: News, sequence: int | None) -> None:
        """Take a status callback. An old, repeated or unknown one changes nothing.

        ``sequence`` None: the result of Twilio's machine detection, which has neither a number nor
        a status of its own.
        """
        task, call = attempt.task, await self._call(attempt.call_id)
        if call is None:
            return
        if task.call_id == call.id:
            if task.call_sid not in (None, news.call_sid):
                return log.warning("a callback names another call", extra={"task_id": task.id})
            if sequence is not None and sequence <= task.sequence:
                return
            session = await self._sessions.find(call.id)
            attached = session is not None and session.attached
            await self._progress.write(call, news, streamed=attached)
            if sequence is not None:
                await self._tasks.learn(
                    task.id, call.id, news.call_sid, sequence=sequence, status=news.status
                )
        if call.ended and call.answered_at is None and news.status in LIVE:
            # Nobody is left to talk to whoever picks up.
            await self._hang_up(task, news.call_sid)
        self.wake()

    async def connect(self, attempt: Attempt, call_sid: str) -> Call | None:
        """Return the call that was answered, for its stream; None: it is over, hang up.

        Raises Forbidden for another Twilio call, and if the stream has come already.
        """
        task, call = attempt.task, await self._call(attempt.call_id)
        if call is None or call.ended or task.call_id != call.id:
            return None
        session = await self._sessions.find(call.id)
        if session is not None and session.attached:
            raise not_signed()
        if await self._tasks.learn(task.id, call.id, call_sid) is None:
            raise not_signed()
        await self._progress.write(call, News(call_sid, "in-progress"), streamed=False)
        return call

    async def _hang_up(self, task: Task, call_sid: str) -> None:
        try:
            account = await self._accounts.calls(Scope(task.auth_id), task.credential_id)
            await account.hang_up(call_sid)
        except AppError as error:
            log.warning("not hung up", extra={"task_id": task.id, "problem": error.code})

    async def _call(self, call_id: str | None) -> Call | None:
        return None if call_id is None else await self._store.call(Scope(None), call_id)


def not_signed() -> Forbidden:
    return Forbidden("The request is not signed by the call's Twilio account")

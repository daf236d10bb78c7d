"""What becomes of a task when the call of its attempt has ended."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from gateway.store.call_status import Call
from gateway.store.streams.tasks import Task


def after(task: Task, call: Call, moment: datetime) -> dict[str, Any]:
    """Return the task's new values: it is finished, or waits for its next attempt.

    Only a call that nobody answered is repeated: a person who was reached is not called again.
    """
    if task.finished:  # canceled
        return {"call_id": None, "due_at": None}
    if call.answered_at is None and call.status in task.wanted.retry.on:
        begin_at = moment + timedelta(seconds=task.wanted.retry.delay_seconds)
        if task.attempts < task.wanted.retry.max_attempts and begin_at <= task.until:
            return {
                "status": "queued",
                "failure": call.disconnection_reason,
                "call_id": None,
                "due_at": begin_at,
            }
    done = call.status if call.status in ("completed", "canceled") else "failed"
    failure = None if done == "completed" else call.disconnection_reason
    return {**finished(moment, done, failure), "call_id": None}


def finished(moment: datetime, status: str, failure: str | None) -> dict[str, Any]:
    return {"status": status, "failure": failure, "due_at": None, "ended_at": moment}

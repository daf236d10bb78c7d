"""What LiveKit hands a worker: a job, what its metadata says of the call, and the call's brief."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from pydantic import TypeAdapter

from core.jobs import Assignment, InboundJob, JobMetadata
from worker.endings import Cause
from worker.link.backoff import Backoff
from worker.link.client import Refused, Unavailable

_BRIEF_WITHIN_S = 15.0  # so long a caller hears ringing
_REFUSALS: dict[int, Cause] = {HTTPStatus.GONE: "over_already", HTTPStatus.NOT_FOUND: "no_call"}

CallJob = JobMetadata | InboundJob
"""A call that we placed, by its id; or a caller's room, of which only the number is known yet."""

_JOB: TypeAdapter[CallJob] = TypeAdapter(CallJob)


def read_job(metadata: str) -> CallJob:
    """Raises pydantic's ValidationError for what is not ours."""
    return _JOB.validate_json(metadata)


def identity(job: CallJob, room_name: str) -> str:
    """The agent's in the room; the same for every job of a call, so that a later one takes over."""
    return f"agent-{job.call_id if isinstance(job, JobMetadata) else room_name}"


def facts(job: CallJob) -> dict[str, str]:
    """What log lines name the job by."""
    return (
        {"call_id": job.call_id} if isinstance(job, JobMetadata) else {"number_id": job.number_id}
    )


async def patiently(ask: Callable[[], Awaitable[Assignment]]) -> Assignment | tuple[Cause, str]:
    """Which call this is, from the gateway, or why it ends here.

    ``ask`` raises Unavailable, and is asked again, or Refused.
    """
    backoff = Backoff(longest=2.0)
    reason = "timeout"
    try:
        async with asyncio.timeout(_BRIEF_WITHIN_S):
            while True:
                try:
                    return await ask()
                except Unavailable as error:
                    reason = str(error)
                    await backoff.wait()
    except Refused as error:
        return (_REFUSALS.get(error.status, "no_brief"), str(error))
    except TimeoutError:
        return ("no_brief", reason)

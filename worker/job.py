"""A job as LiveKit dispatches it: its metadata, the agent's identity, and fetching the brief."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import TypeAdapter

from core.jobs import Assignment, InboundJob, JobMetadata, agent_identity
from worker.endings import Cause
from worker.link.backoff import Backoff
from worker.link.client import Gateway, Refused, Unavailable

_BRIEF_WITHIN_S = 15.0  # a caller hears ringing for this long
_REFUSALS: dict[int, Cause] = {HTTPStatus.GONE: "over_already", HTTPStatus.NOT_FOUND: "no_call"}

CallJob = JobMetadata | InboundJob
"""Outbound: identified by the call's id. Inbound: only the called number is known so far."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Whose agent it is: of which worker, and which of the call's agents (core.recovery)."""

    worker_id: str
    epoch: int = 0


_JOB: TypeAdapter[CallJob] = TypeAdapter(CallJob)


def read_job(metadata: str) -> CallJob:
    """Parse a job's metadata. Raises pydantic's ValidationError for another application's job."""
    return _JOB.validate_json(metadata)


def identity(job: CallJob, room_name: str) -> str:
    """Return the agent's identity: the same for every job of a call, so a later one takes over."""
    if isinstance(job, JobMetadata):
        return job.identity or agent_identity(job.call_id)
    return agent_identity(room_name)


async def placed(job: JobMetadata, gateway: Gateway) -> Assignment:
    """Return the call that the job names. Raises as the gateway does."""
    return Assignment(brief=await gateway.brief(job.call_id, job.token), token=job.token)


def facts(job: CallJob) -> dict[str, str]:
    """Return the log fields that identify the job."""
    return (
        {"call_id": job.call_id} if isinstance(job, JobMetadata) else {"number_id": job.number_id}
    )


async def patiently(ask: Callable[[], Awaitable[Assignment]]) -> Assignment | tuple[Cause, str]:
    """Ask the gateway which call this is; return the cause and detail if that fails.

    Retries when ``ask`` raises Unavailable, and gives up when it raises Refused.
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

"""What LiveKit hands a worker: a job, and what its metadata says of the call."""

from __future__ import annotations

from pydantic import TypeAdapter

from core.jobs import InboundJob, JobMetadata

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

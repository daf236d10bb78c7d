"""LiveKit's jobs: prepares a job process, and serves a job's call on its room's line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection

import aiohttp
from livekit.agents import JobContext, JobProcess

from core.jobs import Assignment, InboundJob, InboundRoom, JobMetadata
from core.rtc_sdk import load
from core.settings import Settings
from core.tokens import TokenIssuer
from worker._private import outlive
from worker.call import Call
from worker.drain import drained
from worker.job import CallJob, Seat, facts, placed, read_job
from worker.link.client import Gateway
from worker.link.reporter import Reporter
from worker.link.spool import Owner
from worker.pulse.heart import Heart
from worker.pulse.standstill import Standstill
from worker.room.line import RoomLine
from worker.voice.providers import build_llm_client

_DELIVER_WITHIN_S = 5.0


def prewarm(
    process: JobProcess,
    settings: Settings,
    drain: Connection,
    pulse: Connection,
    worker_id: str,
) -> None:
    """Prepare a new job process with everything that its call needs."""
    process.userdata["worker_id"] = worker_id
    process.userdata["drain"] = drain
    process.userdata["pulse"] = pulse
    assert settings.livekit_api_secret is not None
    process.userdata["settings"] = settings
    process.userdata["tokens"] = TokenIssuer(settings.livekit_api_secret.get_secret_value())
    process.userdata["llm_client"] = build_llm_client(settings)
    asyncio.run(load())


async def entrypoint(ctx: JobContext) -> None:
    """Serve one job. Returns when the call is over and its events are delivered or on disk."""
    serving = asyncio.create_task(_serve(ctx), name="job")
    outlive(ctx, serving)
    await serving


async def _serve(ctx: JobContext) -> None:
    settings: Settings = ctx.proc.userdata["settings"]
    job = read_job(ctx.job.metadata)
    ctx.log_context_fields = facts(job)
    async with aiohttp.ClientSession() as http:
        gateway = Gateway(http, settings.gateway_base_url)
        reporter = Reporter(gateway, settings.data_dir / "spool" / "worker")
        seat = Seat(
            ctx.proc.userdata["worker_id"], job.epoch if isinstance(job, JobMetadata) else 0
        )
        standstill = Standstill()
        line = RoomLine(ctx, settings, inbound=not isinstance(job, JobMetadata))
        call = Call(
            line,
            _asking(ctx, job, gateway, reporter),
            settings,
            seat=seat,
            llm_client=ctx.proc.userdata["llm_client"],
            gateway=gateway,
            reporter=reporter,
            standstill=standstill,
            draining=drained(ctx.proc.userdata["drain"]),
        )
        heart = Heart(
            ctx.proc.userdata["pulse"],
            ctx.job.id,
            seat.epoch,
            call_id=lambda: None if reporter.owner is None else reporter.owner.call_id,
            still=line.still,
        )
        heart.start()
        standstill.start()
        try:
            await call.run()
        finally:
            await reporter.aclose(_DELIVER_WITHIN_S)
            standstill.stop()
            await heart.stop()
            ctx.shutdown("call over")


def _asking(
    ctx: JobContext, job: CallJob, gateway: Gateway, reporter: Reporter
) -> Callable[[], Awaitable[Assignment]]:
    """Return the function that asks the gateway which call this is.

    It also gives the call's events their owner: at once if the job names the call, else later.
    """
    if isinstance(job, JobMetadata):
        reporter.own(Owner(job.call_id, job.token))
        return partial(placed, job, gateway)
    return partial(_received, ctx, job, gateway, reporter)


async def _received(
    ctx: JobContext, job: InboundJob, gateway: Gateway, reporter: Reporter
) -> Assignment:
    tokens: TokenIssuer = ctx.proc.userdata["tokens"]
    found = await gateway.inbound_call(
        tokens.for_worker(ctx.worker_id),
        InboundRoom(number_id=job.number_id, room_name=ctx.job.room.name),
    )
    ctx.log_context_fields = {"call_id": found.brief.call_id}
    reporter.own(Owner(found.brief.call_id, found.token))
    return found

"""The worker process: registers with LiveKit, takes calls up to its capacity, drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from functools import partial

import aiohttp
from livekit.agents import AgentServer, JobRequest
from prometheus_client import REGISTRY
from pydantic import ValidationError

from core.jobs import Heartbeat, JobMetadata, dispatch_name
from core.models import new_id
from core.process_metrics import TaskCollector
from core.settings import Settings
from core.tokens import TokenIssuer
from recordings.spool_metrics import SpoolCollector
from recordings.stores import Stores
from recordings.upload import sweep_at_the_end, sweep_recordings
from worker._private import is_connecting
from worker.drain import Drain
from worker.entrypoint import entrypoint, prewarm
from worker.job import CallJob, facts, identity, read_job
from worker.link.client import Gateway
from worker.link.recordings import RecordingReport
from worker.link.reporter import sweep_forever
from worker.presence import PresenceThread
from worker.pulse.beat import Pulses
from worker.pulse.report import report_dead
from worker.pulse.watch import Watch

log = logging.getLogger(__name__)

# The worker reconnects by itself after a LiveKit outage of any length (it retries every 10 s).
_FOR_EVER = 2**31
# A call ends within seconds; these limits are for one that hangs.
_SESSION_END_TIMEOUT_S = 20.0
_PROCESS_END_TIMEOUT_S = 10.0
# The first process imports everything, which takes longer than the default of 10 s on a busy
# machine.
_PROCESS_START_TIMEOUT_S = 60.0

# LiveKit drops a dispatch when the named worker is not below its `agents.target_load`, which is 0.7
# by default (JobRequestAffinity in livekit-server's agentservice.go), and it learns a worker's load
# only every 2.5 s. So a full worker reports a load below that, and rejects jobs itself.
_FULL_LOAD = 0.65

# LiveKit waits 3 s for the answer to an offered job.
_FULL_PATIENCE_S = 2.0
_LOOK_EVERY_S = 0.05


class Admission:
    """Accepts jobs up to the worker's capacity.

    The gateway sends no more than that (gateway.store.places), but a job goes on for a moment after
    its call has given back its place. So a job that finds the worker full waits briefly; if it is
    full for longer, the job is rejected, and the gateway moves the call to another worker.

    livekit-agents' own threshold estimates the load of jobs that are accepted but do not
    run yet from the number of idle processes. With two of those it rejects the third job
    of a burst. This class counts the jobs.
    """

    def __init__(
        self, server: AgentServer, capacity: int, patience_s: float = _FULL_PATIENCE_S
    ) -> None:
        self._server = server
        self._capacity = capacity
        self._patience_s = patience_s
        self._starting: dict[str, CallJob] = {}

    @property
    def jobs(self) -> set[str]:
        """Ids of the jobs that run or are starting."""
        return {running.job.id for running in self._server.active_jobs} | self._starting.keys()

    @property
    def calls(self) -> list[str]:
        """Ids of their calls, as far as they name them."""
        running = [read_job(one.job.metadata) for one in self._server.active_jobs]
        named = [*running, *self._starting.values()]
        return list({job.call_id for job in named if isinstance(job, JobMetadata)})

    def load(self) -> float:
        """Return 0 (idle) to 0.65 (full). LiveKit offers no job to a worker above 0.7."""
        return _FULL_LOAD * min(len(self.jobs) / self._capacity, 1.0)

    async def request(self, request: JobRequest) -> None:
        """Accept an offered job under the call's agent identity, or leave it to another worker."""
        try:
            job = read_job(request.job.metadata)
        except ValidationError:
            log.error("a job without Switchroom's metadata", extra={"room": request.room.name})
            return await request.reject(terminate=True)
        if not await self._has_place():
            log.warning("full, call left to another worker", extra=facts(job))
            return await request.reject(terminate=False)
        self._starting[request.id] = job  # with no await since it was seen that there is a place
        try:
            await request.accept(identity=identity(job, request.room.name), name="Agent")
        finally:
            self._starting.pop(request.id, None)

    async def _has_place(self) -> bool:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience_s
        while len(self.jobs) >= self._capacity:
            if clock() >= deadline:
                return False
            await asyncio.sleep(_LOOK_EVERY_S)
        return True


def build_server(
    settings: Settings, drain: Drain, pulses: Pulses, worker_id: str
) -> tuple[AgentServer, Admission]:
    """Build an AgentServer and its admission; jobs get ``drain`` and ``pulses``.


    The settings need the LiveKit key and secret.
    ``worker_id``: ours. LiveKit's changes each time the worker registers again.
    """
    assert settings.livekit_api_secret is not None
    server = AgentServer(
        ws_url=settings.livekit_url,
        api_key=settings.livekit_api_key,
        api_secret=settings.livekit_api_secret.get_secret_value(),
        host=settings.worker_http_host,
        port=settings.worker_http_port,
        prometheus_port=settings.worker_metrics_port,
        num_idle_processes=settings.worker_idle_processes,
        drain_timeout=settings.worker_drain_timeout_s,
        session_end_timeout=_SESSION_END_TIMEOUT_S,
        initialize_process_timeout=_PROCESS_START_TIMEOUT_S,
        shutdown_process_timeout=_PROCESS_END_TIMEOUT_S,
        max_retry=_FOR_EVER,
        setup_fnc=partial(
            prewarm,
            settings=settings,
            drain=drain.told,
            pulse=pulses.told,
            worker_id=worker_id,
        ),
        load_threshold=float("inf"),
        preload_modules=["worker.preload"],
        log_level=settings.log_level,
    )
    admission = Admission(server, settings.worker_max_calls)
    server.load_fnc = admission.load
    name = dispatch_name(settings.agent_name, worker_id)
    server.rtc_session(entrypoint, agent_name=name, on_request=admission.request)
    return server, admission


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then finish the calls in progress; a second signal exits."""
    assert settings.livekit_api_secret is not None
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stopping)

    # livekit-agents serves this registry, which has the process's memory and files already.
    REGISTRY.register(TaskCollector(loop))
    spooled = settings.data_dir / "spool" / "recordings"
    REGISTRY.register(SpoolCollector(spooled))
    tokens = TokenIssuer(settings.livekit_api_secret.get_secret_value())
    async with aiohttp.ClientSession() as http:
        gateway = Gateway(http, settings.gateway_base_url)
        drain = Drain()
        pulses = Pulses()
        worker_id = new_id("wrk")
        server, admission = build_server(settings, drain, pulses, worker_id)
        kept = settings.data_dir / "spool" / "worker"
        watch = Watch(pulses, partial(report_dead, gateway, kept, tokens))
        draining = False

        def heartbeat() -> Heartbeat | None:
            if is_connecting(server):
                return None
            return Heartbeat(
                worker_id=worker_id,
                agent_name=settings.agent_name,
                capacity=settings.worker_max_calls,
                active=len(server.active_jobs),
                draining=draining,
                dispatch_name=dispatch_name(settings.agent_name, worker_id),
                calls=admission.calls,
            )

        report = RecordingReport(gateway, tokens)
        recordings = (spooled, Stores.from_settings(settings), report)
        presence = PresenceThread(heartbeat, settings.gateway_base_url, tokens)
        server.on("worker_registered", lambda *_: presence.begin())
        helpers = [
            asyncio.create_task(presence.run(), name="presence"),
            asyncio.create_task(watch.run(), name="watch"),
            asyncio.create_task(sweep_forever(gateway, kept), name="sweeper"),
            asyncio.create_task(sweep_recordings(*recordings), name="recordings"),
        ]
        running = asyncio.create_task(server.run(), name="server")
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                draining = True
                presence.hurry()
                drain.begin()
                await _drain(server)
            await server.aclose()
            await running
        finally:
            for task in (*helpers, stop):
                task.cancel()
            await asyncio.gather(*helpers, stop, return_exceptions=True)
            await watch.aclose()
            await sweep_at_the_end(*recordings)


async def _drain(server: AgentServer) -> None:
    try:
        await server.drain()
    except TimeoutError:
        log.warning("calls cut: the drain took too long")


def _on_signal(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        log.warning("stopped at once")
        with contextlib.suppress(Exception):
            logging.shutdown()
        # Job processes end too, because their channel to this process closes.
        os._exit(1)
    log.info("draining")
    stopping.set()

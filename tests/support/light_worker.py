"""Workers whose jobs only report: ``python -m tests.support.light_worker FOLDER NUMBER``.

Name, admission and heartbeats are the real ones, so three of them take calls as three workers do;
but all are in one process, and a job is a thread that joins no room. It is there until its call is
over. The largest number of jobs at a time is in the file ``FOLDER/<worker id>``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
from livekit.agents import AgentServer, JobContext, JobExecutorType

from core import settings as configuration
from core.jobs import Heartbeat, JobMetadata, dispatch_name
from core.models import CallEvent, new_id
from core.settings import Settings
from core.tokens import TokenIssuer
from worker.job import read_job
from worker.link.client import Gateway, GatewayError
from worker.presence import Presence
from worker.server import Admission

_LOOK_EVERY_S = 0.2


class LightWorker:
    def __init__(self, settings: Settings, folder: Path) -> None:
        assert settings.livekit_api_key and settings.livekit_api_secret
        secret = settings.livekit_api_secret.get_secret_value()
        self.id = new_id("wrk")
        self._settings = settings
        self._tokens = TokenIssuer(secret)
        self._most = 0
        self._file = folder / self.id
        self._server = AgentServer(
            job_executor_type=JobExecutorType.THREAD,
            ws_url=settings.livekit_url,
            api_key=settings.livekit_api_key,
            api_secret=secret,
            host="127.0.0.1",
            port=0,
            num_idle_processes=0,
            load_threshold=float("inf"),
        )
        self._admission = Admission(self._server, settings.worker_max_calls)
        self._server.load_fnc = self._admission.load
        self._name = dispatch_name(settings.agent_name, self.id)
        self._server.rtc_session(
            self._serve_job, agent_name=self._name, on_request=self._admission.request
        )

    async def run(self) -> None:
        async with aiohttp.ClientSession() as http:
            gateway = Gateway(http, self._settings.gateway_base_url)
            presence = Presence(self._heartbeat, gateway, self._tokens)
            registered = asyncio.Event()
            self._server.on("worker_registered", lambda *_: registered.set())
            self._server.on("worker_registered", lambda *_: presence.begin())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(presence.run())
                tasks.create_task(self._count(registered))
                tasks.create_task(self._server.run())

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            worker_id=self.id,
            agent_name=self._settings.agent_name,
            capacity=self._settings.worker_max_calls,
            active=len(self._server.active_jobs),
            dispatch_name=self._name,
            calls=self._admission.calls,
        )

    async def _count(self, registered: asyncio.Event) -> None:
        await registered.wait()
        while True:
            if (active := len(self._server.active_jobs)) > self._most:
                self._most = active
                # At once: the test may read it at any time.
                new = self._file.parent.with_name(f"{self.id}.new")
                new.write_text(str(active))
                new.replace(self._file)
            await asyncio.sleep(0.02)

    async def _serve_job(self, ctx: JobContext) -> None:
        job = read_job(ctx.job.metadata)
        assert isinstance(job, JobMetadata)
        async with aiohttp.ClientSession() as http:
            gateway = Gateway(http, self._settings.gateway_base_url)
            brief = await gateway.brief(job.call_id, job.token)
            here = {"worker": self.id, "epoch": job.epoch}
            event = CallEvent(id=f"{brief.call_id}_joined_{ctx.job.id}", type="agent.joined")
            event.data.update(here)
            while not await self._over(gateway, job, event):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_EVERY_S)
            await self._over(gateway, job, CallEvent(type="agent.left", data={"cause": "over"}))
        ctx.shutdown("call over")

    async def _over(self, gateway: Gateway, job: JobMetadata, event: CallEvent) -> bool:
        """Report the event (again); return True once the call is over."""
        try:
            return await gateway.post_events(job.call_id, job.token, [event])
        except GatewayError:
            return False


async def main(folder: Path, number: int) -> None:
    settings = configuration.load()
    await asyncio.gather(*(LightWorker(settings, folder).run() for _ in range(number)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))

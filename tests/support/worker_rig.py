"""The environment of the worker's tests: a gateway that notes requests, a phone in the room."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
from livekit import api, rtc
from livekit.api import LiveKitAPI

from core.models import AgentConfig
from core.settings import Settings
from dev.providers import Control, Providers
from dev.speech import CALLER_VOICE, synthesize
from dev.stack import Stack, StackOptions
from tests.support.worker_gateway import KeptCall, WorkerGateway

SPARE = "spare"
LISTEN_RATE = 16_000
_LOUD = 300  # mean absolute sample above which there is speech


class Phone:
    """A participant of kind SIP, like a SIP service's: it rings, answers, speaks and listens."""

    def __init__(self, room: rtc.Room) -> None:
        self.room = room
        self.heard_at: list[float] = []
        """Loop time of every 20 ms of audible speech from the agent."""
        self.agent_published = asyncio.Event()
        self._source = rtc.AudioSource(LISTEN_RATE, 1, queue_size_ms=200)
        self._listening: set[asyncio.Task[None]] = set()
        self._heard = asyncio.Condition()
        room.on("track_published", lambda *_: self.agent_published.set())
        room.on("track_subscribed", self._subscribed)

    @classmethod
    @contextlib.asynccontextmanager
    async def join(
        cls,
        url: str,
        key: str,
        secret: str,
        *,
        room: str,
        identity: str,
        status: str = "dialing",
        kind: Any = "sip",
        subscribe: bool = True,
    ) -> AsyncIterator[Phone]:
        """Join the room. ``subscribe``: get the agent's track, as a SIP service must to answer."""
        token = (
            api.AccessToken(key, secret)
            .with_identity(identity)
            .with_kind(kind)
            .with_grants(api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True))
        )
        if kind == "sip":
            token = token.with_attributes({"sip.callStatus": status})
        joined = rtc.Room()
        phone = cls(joined)
        await joined.connect(url, token.to_jwt(), rtc.RoomOptions(auto_subscribe=subscribe))
        try:
            track = rtc.LocalAudioTrack.create_audio_track("phone", phone._source)
            options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
            await joined.local_participant.publish_track(track, options)
            yield phone
        finally:
            for task in phone._listening:
                task.cancel()
            await asyncio.gather(*phone._listening, return_exceptions=True)
            await joined.disconnect()
            await phone._source.aclose()

    async def status(self, status: str) -> None:
        await self.room.local_participant.set_attributes({"sip.callStatus": status})

    async def answer(self) -> float:
        """Answer; return the loop time."""
        await self.status("active")
        return asyncio.get_running_loop().time()

    async def hang_up(self) -> None:
        """Leave as on a BYE from the phone."""
        await self.status("hangup")
        await self.room.disconnect()

    async def say(self, text: str) -> None:
        """Speak in real time, then be silent so that the agent detects the end."""
        pcm = synthesize(text, CALLER_VOICE, LISTEN_RATE).pcm
        await self.play(np.concatenate([pcm, np.zeros(LISTEN_RATE, np.int16)]))

    async def play(self, pcm: npt.NDArray[np.int16]) -> None:
        step = LISTEN_RATE // 50
        for start in range(0, len(pcm) - step + 1, step):
            frame = pcm[start : start + step].tobytes()
            await self._source.capture_frame(rtc.AudioFrame(frame, LISTEN_RATE, 1, step))

    async def hears(self, after: float = 0.0, within_s: float = 15.0) -> float:
        """Return the loop time of the agent's first speech after ``after``."""

        def found() -> float | None:
            return next((at for at in self.heard_at if at > after), None)

        async with asyncio.timeout(within_s), self._heard:
            await self._heard.wait_for(lambda: found() is not None)
        at = found()
        assert at is not None
        return at

    def _subscribed(self, track: rtc.Track, *_: Any) -> None:
        task = asyncio.create_task(self._listen(track))
        self._listening.add(task)
        task.add_done_callback(self._listening.discard)

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=LISTEN_RATE, frame_size_ms=20)
        try:
            async for event in stream:
                samples = np.frombuffer(event.frame.data, np.int16)
                if np.abs(samples.astype(np.int32)).mean() > _LOUD:
                    async with self._heard:
                        self.heard_at.append(asyncio.get_running_loop().time())
                        self._heard.notify_all()
        finally:
            await stream.aclose()


class WorkerStack:
    """livekit-server and worker as processes; gateway and providers in this one."""

    def __init__(self, stack: Stack, gateway: WorkerGateway, providers: Providers) -> None:
        self.stack = stack
        self.gateway = gateway
        self.providers = providers
        self.livekit: LiveKitAPI = stack.api()
        self._workers: dict[str, tuple[int | None, str]] = {}
        """By AGENT_NAME: the worker's process, and its id in its heartbeats."""
        self._gone: set[str] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def run(
        cls, control: Control | None = None, *, spare: bool = False, **values: Any
    ) -> AsyncIterator[WorkerStack]:
        """Run the stack; ``values`` are settings of the worker, by field name.

        ``spare``: there is a second worker, for agents with the name SPARE.
        """
        key, secret = "APIworkertests", secrets.token_hex(32)
        async with (
            WorkerGateway.run(key, secret) as gateway,
            Providers(control) as providers,
        ):
            settings = {
                "gateway_url": gateway.url,
                "livekit_api_key": key,
                "livekit_api_secret": secret,
                "livekit_server_bin": Settings(_env_file=None).livekit_server_bin,
                "deepgram_base_url": providers.deepgram_base_url,
                "openai_base_url": providers.openai_base_url,
                "cartesia_base_url": providers.cartesia_base_url,
                "deepgram_api_key": "deepgram-key-for-tests",
                "openai_api_key": "openai-key-for-tests",
                "cartesia_api_key": "cartesia-key-for-tests",
                "worker_idle_processes": 1,
                "endpointing_ms": 300,
                "log_level": "DEBUG",
            }
            options = StackOptions(
                bridge=False,
                gateway=False,
                providers=False,
                worker=2 if spare else 1,
                values=settings | values,
                env={"worker-2": {"AGENT_NAME": SPARE}},
            )
            async with Stack(options) as stack:
                running = cls(stack, gateway, providers)
                try:
                    await gateway.heartbeat(lambda beat: beat.active == 0)
                    yield running
                finally:
                    await running.livekit.aclose()

    @property
    def log(self) -> str:
        return self.stack.log_text("worker")

    async def dispatch(self, config: AgentConfig, **changes: Any) -> KeptCall:
        """Record a call, create its room and dispatch its agent; no one else is in the room."""
        call = self.gateway.new_call(config, **changes)
        await self.gateway.record(call)
        await self.dispatch_again(call)
        return call

    async def dispatch_again(
        self, call: KeptCall, job: str | None = None, agent_name: str | None = None
    ) -> None:
        """Dispatch an agent for the call (or for another job); create the room if it is missing."""
        await self.livekit.room.create_room(
            api.CreateRoomRequest(name=call.room, empty_timeout=10, departure_timeout=1)
        )
        await self.livekit.agent_dispatch.create_dispatch(
            api.CreateAgentDispatchRequest(
                agent_name=await self._dispatch_name(agent_name or self.stack.settings.agent_name),
                room=call.room,
                metadata=job or self.gateway.job(call),
            )
        )

    async def _dispatch_name(self, agent_name: str) -> str:
        """Return the name of the worker in LiveKit, also of one that was just started again."""
        own = agent_name == self.stack.settings.agent_name
        pid = self.stack.worker.process.pid if own else None  # the spare is not started again
        before, known = self._workers.get(agent_name, (None, ""))
        others = [known] if before is not None and before != pid else []
        beat = await self.gateway.worker(agent_name, not_of=[*self._gone, *others])
        self._gone.update(others)
        self._workers[agent_name] = pid, beat.worker_id
        return beat.dispatch_name or agent_name

    def phone(
        self, call: KeptCall, **options: Any
    ) -> contextlib.AbstractAsyncContextManager[Phone]:
        """Join the call's far end."""
        settings = self.stack.settings
        assert settings.livekit_api_key and settings.livekit_api_secret
        options = {"identity": call.identity} | options
        return Phone.join(
            settings.livekit_url,
            settings.livekit_api_key,
            settings.livekit_api_secret.get_secret_value(),
            room=call.room,
            **options,
        )

    @contextlib.asynccontextmanager
    async def talk(
        self, config: AgentConfig, **changes: Any
    ) -> AsyncIterator[tuple[KeptCall, Phone]]:
        """Yield an answered call, after its greeting (if any) has been spoken."""
        call = await self.dispatch(config, **changes)
        async with self.phone(call) as phone:
            await call.event("agent.ready")
            await phone.answer()
            await call.event("call.answered")
            if config.begin_message:
                await call.until(lambda told: told.turns, "greeting")
            yield call, phone

    async def end_calls(self) -> None:
        """Delete the rooms of all calls so far."""
        for call in self.gateway.calls.values():
            with contextlib.suppress(api.ServerError, aiohttp.ClientError):
                await self.livekit.room.delete_room(api.DeleteRoomRequest(room=call.room))

    async def identities(self, call: KeptCall) -> set[str]:
        """Return the identities in the call's room now."""
        request = api.ListParticipantsRequest(room=call.room)
        found = await self.livekit.room.list_participants(request)
        return {participant.identity for participant in found.participants}

    async def until_both_are_back(self, call: KeptCall, within_s: float = 30.0) -> None:
        """Wait until caller and agent are in the room, each with a published track."""
        request = api.ListParticipantsRequest(room=call.room)
        async with asyncio.timeout(within_s):
            while True:
                found = await self.livekit.room.list_participants(request)
                if sum(bool(participant.tracks) for participant in found.participants) == 2:
                    return
                await asyncio.sleep(0.1)

    async def until(self, condition: Callable[[], Any], what: str, within_s: float = 30.0) -> None:
        """Poll for a condition without an event (logs, files, processes). Raises AssertionError."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"no {what} within {within_s:g} s; log:\n{self.log}") from None

"""One call, from the job to its last event; reads top to bottom."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import aiohttp
from livekit import rtc
from livekit.agents import JobContext, JobProcess

from core.events import ended
from core.jobs import CallBrief, InboundRoom, JobMetadata
from core.rtc_sdk import load, publish_dtmf
from core.settings import Settings
from core.tokens import TokenIssuer
from core.transfers import TransferOrder, TransferResult
from core.url_guard import guarded_session
from worker.brains.hosted import HostedBrain
from worker.brains.webhook import WebhookBrain
from worker.handover.aside import Aside
from worker.handover.transfer import Transfers
from worker.job import CallJob, facts, patiently, read_job
from worker.link.client import Gateway
from worker.link.reporter import Reporter
from worker.link.spool import Owner
from worker.machines.voicemail import MachinePolicy, telephone_audio
from worker.room import leaving
from worker.room.endings import ENDINGS, Cause, agent_disconnected
from worker.room.far_end import FarEnd
from worker.room.silence import SilenceClock, warning_after_s
from worker.tools.actions import Actions, no_transfer
from worker.tools.box import ToolBox
from worker.tools.digits import Keypad
from worker.voice.ambient import AmbientSound, ambient_sound
from worker.voice.brain import Brain
from worker.voice.conversation import Conversation
from worker.voice.providers import build_llm_client

log = logging.getLogger(__name__)

_JOIN_WITHIN_S = 30.0  # the dial begins when the agent is in the room
_CALLER_WITHIN_S = 5.0  # a caller is there before the agent, or has given up
_ANSWER_WITHIN_S = 200.0  # livekit-sip lets a phone ring for 180 s at most
_RECONNECT_WITHIN_S = 20.0
_TOLD_WITHIN_S = 1.0
_LEG_DRAIN_S = 0.4  # what the phone leg still has to play when we have said our last word
_DELIVER_WITHIN_S = 5.0
_SAID_LAST_WORDS: frozenset[Cause] = frozenset({"agent_hung_up", "voicemail_reached"})
# The gateway answers a transfer when its phone was answered; by then, or it is asked again.
_TRANSFER_WITHIN_S = 120.0


def prewarm(process: JobProcess, settings: Settings) -> None:
    """Give a fresh job process what its call will need."""
    assert settings.livekit_api_secret is not None
    process.userdata["settings"] = settings
    process.userdata["tokens"] = TokenIssuer(settings.livekit_api_secret.get_secret_value())
    process.userdata["llm_client"] = build_llm_client(settings)
    asyncio.run(load())


async def entrypoint(ctx: JobContext) -> None:
    """Serve one job; returns when the call is over and its events are safe."""
    settings: Settings = ctx.proc.userdata["settings"]
    job = read_job(ctx.job.metadata)
    ctx.log_context_fields = facts(job)
    async with (
        aiohttp.ClientSession() as http,
        guarded_session(allow_private=settings.webhook_allow_private) as tools_http,
    ):
        gateway = Gateway(http, settings.gateway_base_url)
        reporter = Reporter(gateway, settings.data_dir / "spool" / "worker")
        try:
            await _Call(ctx, settings, job, tools_http, gateway, reporter).run()
        finally:
            await reporter.aclose(_DELIVER_WITHIN_S)
            ctx.shutdown("call over")


class _Call:
    def __init__(
        self,
        ctx: JobContext,
        settings: Settings,
        job: CallJob,
        tools_http: aiohttp.ClientSession,
        gateway: Gateway,
        reporter: Reporter,
    ) -> None:
        self._ctx = ctx
        self._settings = settings
        self._job = job
        self._tools_http = tools_http
        self._gateway = gateway
        self._reporter = reporter
        self._over: asyncio.Future[tuple[Cause, str]] = asyncio.Future()
        self._far_end: FarEnd | None = None
        self._phone: str | None = None
        self._conversation: Conversation | None = None
        self._owner: Owner | None = None
        self._transfers: Transfers | None = None
        self._inbound = not isinstance(job, JobMetadata)
        self._answered_at: float | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._keys = Keypad(self._keys_pressed)
        self._machine: MachinePolicy | None = None
        self._silence: SilenceClock | None = None
        self._ambience: AmbientSound | None = None

    async def run(self) -> None:
        """Walk through the call until something ends it."""
        self._reporter.on_over = partial(self._end, "over_already")
        if isinstance(self._job, JobMetadata):
            self._own(Owner(self._job.call_id, self._job.token))
        walk = asyncio.create_task(self._walk(), name="call")
        walk.add_done_callback(self._walked)
        try:
            await asyncio.shield(self._over)
        except asyncio.CancelledError:
            # The worker stops and will not wait any longer.
            self._end("worker_stopped")
        walk.cancel()
        await asyncio.gather(walk, return_exceptions=True)
        await self._finish(*self._over.result())

    def _own(self, owner: Owner) -> None:
        self._owner = owner
        self._reporter.own(owner)

    async def _walk(self) -> None:
        self._ctx.room.on("disconnected", self._disconnected)
        self._ctx.room.on("reconnecting", self._reconnecting)
        self._ctx.room.on("reconnected", self._reconnected)
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(self._connect())
            brief = await patiently(self._ask)
            if not isinstance(brief, CallBrief):
                await connecting  # who is to be hung up on is seen in the room
                return self._end(*brief)
            self._inbound = brief.direction == "inbound"
            self._phone = brief.participant_identity
            # A greeting takes its time: it is begun before there is anybody to hear it.
            conversation = self._conversation = self._begin(brief)
            tasks.create_task(conversation.prepare())
            tasks.create_task(conversation.warm())
            await connecting
            await self._talk(brief, conversation)

    async def _connect(self) -> None:
        # To all tracks: audio only, as LiveKit does it, is deaf after a restart of the server.
        await self._ctx.connect()
        self._reporter.post("agent.joined")

    async def _talk(self, brief: CallBrief, conversation: Conversation) -> None:
        far_end = self._far_end = FarEnd(
            self._ctx.room,
            brief.participant_identity,
            inbound=self._inbound,
            on_ringing=self._rings,
            on_answered=partial(self._answered, brief),
            on_digit=self._digit,
            on_left=self._end if self._transfers is None else self._transfers.caller_left,
        )
        far_end.look()
        # Publishes the agent's track: a caller is answered when it is there.
        await conversation.start(self._ctx.room, brief.participant_identity, inbound=self._inbound)
        if not await _within(_CALLER_WITHIN_S if self._inbound else _JOIN_WITHIN_S, far_end.joined):
            return self._end("caller_gave_up" if self._inbound else "nobody_came")
        if not await _within(_ANSWER_WITHIN_S, far_end.answered):
            return self._end("rang_out" if self._inbound else "not_answered")
        assert self._answered_at is not None
        conversation.answered(self._answered_at)
        async with asyncio.TaskGroup() as tasks:
            if self._ambience is not None:
                tasks.create_task(self._ambience.start(self._ctx.room))
            if self._machine is not None:
                audio = partial(telephone_audio, self._ctx.room, brief.participant_identity)
                tasks.create_task(self._machine.run(conversation, audio))

    async def _ask(self) -> CallBrief:
        """Raises Unavailable or Refused. From here on, or before, the events have an owner."""
        job = self._job
        if isinstance(job, JobMetadata):
            return await self._gateway.brief(job.call_id, job.token)
        tokens: TokenIssuer = self._ctx.proc.userdata["tokens"]
        found = await self._gateway.inbound_call(
            tokens.for_worker(self._ctx.worker_id),
            InboundRoom(number_id=job.number_id, room_name=self._ctx.job.room.name),
        )
        self._ctx.log_context_fields = {"call_id": found.brief.call_id}
        self._own(Owner(found.brief.call_id, found.token))
        return found.brief

    def _begin(self, brief: CallBrief) -> Conversation:
        config = brief.agent.config
        self._silence = SilenceClock(
            config.max_silence_ms / 1000,
            partial(self._end, "silence"),
            prompts=config.silence_prompts,
            prompt_s=config.silence_prompt_ms / 1000,
            on_prompt=self._prompt,
        )
        if config.transfer_number is not None:
            self._transfers = self._transfers_of(brief)
        actions = Actions(
            tone=partial(publish_dtmf, self._ctx.room, brief.participant_identity),
            post=self._reporter.post,
            hang_up=partial(self._end, "agent_hung_up"),
            transfer=no_transfer if self._transfers is None else self._transfers.transfer,
        )
        self._ambience = ambient_sound(config)
        machine = None
        if brief.direction == "outbound" and MachinePolicy.wanted(config):
            machine = MachinePolicy(
                config, post=self._reporter.post, end=self._end, hush=self._stop_ambience
            )
        self._machine = machine
        return Conversation(
            config,
            self._settings,
            self._think_with(brief, actions, machine),
            post=self._reporter.post,
            on_failed=lambda stage, why: self._end("provider_failed", f"{stage}: {why}"),
            on_busy=self._busy,
            on_heard=self._heard if machine else None,
        )

    def _think_with(
        self, brief: CallBrief, actions: Actions, machine: MachinePolicy | None
    ) -> Brain:
        config, post = brief.agent.config, self._reporter.post
        if config.voice_mode == "webhook":
            return WebhookBrain(
                brief,
                actions=actions,
                post=post,
                on_busy=partial(self._busy, "webhook"),
                allow_private=self._settings.webhook_allow_private,
            )
        box = ToolBox(
            call_id=brief.call_id,
            http=self._tools_http,
            post=post,
            actions=actions,
            keypad=self._keys,
            language=config.language,
            leave_voicemail=machine.told if machine and machine.leaves_message else None,
        )
        return HostedBrain(
            config,
            self._ctx.proc.userdata["llm_client"],
            box,
            allow_private=self._settings.webhook_allow_private,
        )

    def _transfers_of(self, brief: CallBrief) -> Transfers:
        return Transfers(
            brief,
            room=self._ctx.room,
            livekit=self._ctx.api,
            aside=partial(Aside, brief.agent.config, self._settings),
            ask=self._ask_transfer,
            post=self._reporter.post,
            delivered=self._reporter.delivered,
            on_hold=self._hold,
            on_over=self._end,
        )

    async def _ask_transfer(self, order: TransferOrder) -> TransferResult:
        owner = self._owner
        assert owner is not None
        return await self._gateway.transfer(owner.call_id, owner.token, order, _TRANSFER_WITHIN_S)

    def _hold(self, on: bool) -> None:
        """The caller waits for a human: what they say or press meanwhile is for nobody."""
        if self._silence is not None:
            self._silence.busy("transfer", on)
        if self._conversation is not None:
            self._conversation.hold(on)

    # What happens on the way

    def _rings(self) -> None:
        if not self._inbound:  # a caller's ringing is where the record begins
            self._reporter.post("call.ringing")

    def _answered(self, brief: CallBrief) -> None:
        event = self._reporter.post("call.answered")
        self._answered_at = event.at.timestamp()
        duration_s = brief.max_duration_ms / 1000
        self._timer("max_duration", duration_s)
        if (warning := brief.agent.config.max_duration_warning) is not None:
            loop = asyncio.get_running_loop()
            self._timers["warning"] = loop.call_later(
                warning_after_s(duration_s), self._say, warning
            )
        if self._silence is not None:
            self._silence.start()

    def _digit(self, digit: str) -> None:
        self._reporter.post("dtmf.received", {"digit": digit})
        if self._silence is not None:
            self._silence.touch()
        self._keys.pressed(digit)

    def _keys_pressed(self, digits: str) -> None:
        if self._conversation is not None and self._is_ours:
            self._conversation.pressed(digits)

    def _busy(self, who: str, busy: bool) -> None:
        if self._silence is not None:
            self._silence.busy(who, busy)
        if self._machine is not None:
            self._machine.busy(who, busy)

    def _heard(self, text: str, final: bool) -> None:
        if self._machine is not None and self._is_ours:
            self._machine.heard(text, final)

    def _prompt(self, text: str) -> None:
        if self._say(text):
            self._reporter.post("silence.prompted", {"text": text})

    def _say(self, text: str) -> bool:
        return self._conversation is not None and self._is_ours and self._conversation.say(text)

    @property
    def _is_ours(self) -> bool:
        """Whether the far end is with the agent, and not on hold or gone."""
        on_hold = self._transfers is not None and self._transfers.under_way
        return not on_hold and not self._over.done()

    def _reconnecting(self) -> None:
        log.warning("connection to LiveKit lost")
        self._timer("media_lost", _RECONNECT_WITHIN_S)

    def _reconnected(self) -> None:
        log.info("connection to LiveKit restored")
        timer = self._timers.pop("media_lost", None)
        if timer is not None:
            timer.cancel()
        if self._far_end is not None:
            self._far_end.recheck()

    def _disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        cause = agent_disconnected(
            reason, answered=self._answered_at is not None, inbound=self._inbound
        )
        self._end(cause, rtc.DisconnectReason.Name(reason))

    def _timer(self, cause: Cause, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[cause] = loop.call_later(delay_s, self._end, cause)

    def _walked(self, walk: asyncio.Task[None]) -> None:
        if not walk.cancelled() and (error := walk.exception()) is not None:
            log.error("the call failed", exc_info=error)
            self._end("worker_failed", type(error).__name__)

    # The end

    def _end(self, cause: Cause, detail: str = "") -> None:
        """Whatever ends the call first, ends it."""
        if not self._over.done():
            log.info("call over", extra={"cause": cause, "detail": detail})
            self._over.set_result((cause, detail))

    async def _finish(self, cause: Cause, detail: str) -> None:
        ending = ENDINGS[cause]
        self._stop_clocks()
        if self._transfers is not None:
            await self._transfers.aclose()
        conversation = self._conversation
        if conversation is not None:
            if ending.apologise and self._answered_at is not None:
                await conversation.apologise()
            conversation.hung_up()
        if cause in _SAID_LAST_WORDS or ending.apologise:
            await asyncio.sleep(_LEG_DRAIN_S)
        if ending.status is not None and ending.reason is not None:
            # Before the hang-up, so that LiveKit's webhook finds the reason already there.
            self._reporter.post(
                "call.ended", ended(ending.status, ending.reason, cause=cause, detail=detail)
            )
        if ending.hang_up:
            await self._hang_up()
        await self._stop_ambience()
        if self._ctx.room.isconnected():
            await leaving.fall_silent(self._ctx.room)
        if conversation is not None:
            await conversation.aclose()
        if self._far_end is not None:
            self._far_end.close()
        await leaving.leave(self._ctx.room)
        self._reporter.post("agent.left", {"cause": cause})

    async def _stop_ambience(self) -> None:
        if self._ambience is not None:
            await self._ambience.stop()

    def _stop_clocks(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._keys.close()
        if self._silence is not None:
            self._silence.stop()

    async def _hang_up(self) -> None:
        """Send the far end away; the room may hold others, so it is left alone."""
        identity = self._far_end_identity()
        if identity is None:
            return
        if not (await self._told() and await leaving.end_call(self._ctx.room, identity)):
            await leaving.hang_up(self._ctx.api, self._ctx.room.name, identity)

    async def _told(self) -> bool:
        """Whether the gateway knows why it ends: a leg that leaves by itself does not show it."""
        if self._answered_at is None:
            return False
        try:
            async with asyncio.timeout(_TOLD_WITHIN_S):
                await self._reporter.delivered()
        except TimeoutError:
            return False
        return True

    def _far_end_identity(self) -> str | None:
        if self._far_end is not None:
            return self._far_end.identity if self._far_end.present else None
        # Without a brief: the phone in the room. Without a look at the room: as the brief says.
        return self._phone or leaving.only_phone(self._ctx.room)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False

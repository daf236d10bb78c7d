"""One call, from joining the line to its last event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

import aiohttp
from openai import AsyncClient

from core.jobs import Assignment, CallBrief
from core.recordings.command import Command
from core.settings import Settings
from core.tasks.within import within
from worker.brains.choice import brain_of
from worker.departure import Departure
from worker.endings import Cause
from worker.handover.transfer import Transfers
from worker.handover.witness import Witness, witness_of
from worker.job import Seat, patiently
from worker.line import Line
from worker.link.client import Gateway
from worker.link.reporter import Reporter
from worker.machines.voicemail import SAMPLE_RATE, MachinePolicy
from worker.opening.opening import Opening
from worker.privacy.control import RecordingControl
from worker.privacy.gate import Gate
from worker.privacy.logs import words_withheld
from worker.privacy.redactor import redactor_of
from worker.privacy.secrets import Secrets
from worker.pulse.standing import Standing
from worker.pulse.standstill import Standstill
from worker.recording.recorder import Recorder, recorder_of
from worker.silence import Clocks, SilenceClock
from worker.takeover import Takeover
from worker.timing.call_clock import CallClock
from worker.tools.actions import Actions, no_transfer
from worker.tools.box import ToolBox
from worker.tools.digits import Keypad
from worker.tools.runs import runs_of
from worker.voice.ambient import AmbientSound, ambient_sound
from worker.voice.conversation import Conversation

log = logging.getLogger(__name__)

_JOIN_WITHIN_S = 30.0  # a callee's leg joins when the dial begins, a browser when its user does
_CALLER_WITHIN_S = 5.0  # a caller joins before the agent; one who is not there has hung up
_ANSWER_WITHIN_S = 200.0  # livekit-sip lets a phone ring for 180 s at most


class Call:
    """Serves one call on ``line``; a worker.line.Listener. ``run`` may be called once.

    ``ask`` asks the gateway which call this is, and raises Unavailable or Refused.
    """

    def __init__(
        self,
        line: Line,
        ask: Callable[[], Awaitable[Assignment]],
        settings: Settings,
        *,
        seat: Seat,
        llm_client: AsyncClient,
        gateway: Gateway,
        reporter: Reporter,
        standstill: Standstill,
        draining: asyncio.Event | None = None,
    ) -> None:
        """``standstill`` watches the process. ``draining`` is set when the worker is to stop as
        soon as its agents are done."""
        self._line = line
        self._ask = ask
        self._settings = settings
        self._seat = seat
        self._llm_client = llm_client
        self._gateway = gateway
        self._reporter = reporter
        self._draining = draining or asyncio.Event()
        self._standing = Standing(gateway, reporter, standstill, line.taken_over)
        # For the servers of the agent's owner: tools, MCP servers, the webhook.
        self._open_http = self._standing.opener(allow_private=settings.webhook_allow_private)
        self._tools_http: aiohttp.ClientSession | None = None
        self._clock = CallClock(line)
        self._gate = Gate(reporter.post, self._clock.now_ms)
        self._recorder: Recorder | None = None
        self._recording = RecordingControl(self._gate, post=reporter.post)
        self._over: asyncio.Future[tuple[Cause, str]] = asyncio.Future()
        self._assignment: Assignment | None = None
        self._conversation: Conversation | None = None
        self._opening: Opening | None = None
        self._transfers: Transfers | None = None
        self._witness: Witness | None = None
        self._takeover: Takeover | None = None
        self._clocks: Clocks | None = None
        self._keys = Keypad(self._keys_pressed)
        self._recording.deafened.append(self._keys.deafen)
        self._machine: MachinePolicy | None = None
        self._silence: SilenceClock | None = None
        self._ambience: AmbientSound | None = None

    async def run(self) -> None:
        """Handle the call until something ends it."""
        self._reporter.on_over = partial(self._end, "over_already")
        async with self._open_http() as http, self._standing.watched():
            self._tools_http = http
            await self._run()

    async def _run(self) -> None:
        with words_withheld(self._gate):
            walk = asyncio.create_task(self._walk(), name="call")
            walk.add_done_callback(self._walked)
            try:
                await asyncio.shield(self._over)
            except asyncio.CancelledError:
                # The worker stops and does not wait for the call to end.
                self._end("worker_stopped")
            walk.cancel()
            await asyncio.gather(walk, return_exceptions=True)
            await self._finish(*self._over.result())

    async def _walk(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(self._connect())
            found = await patiently(self._ask)
            if not isinstance(found, Assignment):
                await connecting  # the hang-up needs the connected line
                return self._end(*found)
            brief = found.brief
            self._assignment = found
            self._gate.redactor = redactor_of(brief, self._clock.now_ms)
            self._line.meet(brief)
            self._takeover = takeover = Takeover(brief, self._reporter.post)
            takeover.begin(self._clock)
            # Synthesis takes time, so start on the greeting before anybody can hear it.
            conversation = self._conversation = self._begin(brief, found.token, takeover)
            self._recording.deafened.append(conversation.mask)
            takeover.restore(self._recording, self._keys)
            tasks.create_task(conversation.prepare())
            tasks.create_task(conversation.warm())
            await connecting
            await self._talk(conversation, takeover, inbound=brief.direction == "inbound")

    async def _connect(self) -> None:
        await self._line.connect(self)
        seat = {"worker": self._seat.worker_id, "epoch": self._seat.epoch}
        self._reporter.post("agent.joined", seat)

    async def _talk(self, conversation: Conversation, takeover: Takeover, *, inbound: bool) -> None:
        line = self._line
        await conversation.start(inbound=inbound)
        takeover.started()
        if takeover.gives_up and takeover.resumption is None:
            return self._end("agents_lost")
        # A former agent has met the far end; somebody else knows why it is not there any more.
        waiting = inbound and takeover.resumption is None
        if not await within(_CALLER_WITHIN_S if waiting else _JOIN_WITHIN_S, line.joined()):
            return self._end("caller_gave_up" if waiting else "nobody_came")
        if not await within(_ANSWER_WITHIN_S, line.answered()):
            return self._end("rang_out" if inbound else "not_answered")
        if takeover.gives_up:
            return self._end("agents_lost")
        assert self._opening is not None
        conversation.answered()
        async with asyncio.TaskGroup() as tasks:
            if self._machine is not None:
                tasks.create_task(self._machine.run(conversation, partial(line.hear, SAMPLE_RATE)))
                if self._machine.decided:
                    return
            opens = takeover.open(self._opening, conversation, self._keys, self._transfers)
            tasks.create_task(opens)
            if self._ambience is not None:
                tasks.create_task(self._ambience.start(line))

    def _begin(self, brief: CallBrief, token: str, takeover: Takeover) -> Conversation:
        config, resumption = brief.agent.config, takeover.resumption
        so_far = None if resumption is None else resumption.so_far
        post = self._reporter.post
        self._clocks = Clocks(brief, so_far, end=self._end, say=self._say, prompt=self._prompt)
        self._silence = self._clocks.silence
        self._opening = Opening(
            brief,
            gate=self._gate,
            post=post,
            end=self._end,
            on_busy=partial(self._busy, "opening"),
            resumption=resumption,
        )
        self._recording.deafened.append(partial(self._silence.busy, "mask"))
        self._recorder = recorder_of(
            brief, self._line, self._settings, clock=self._clock, gate=self._gate, post=post
        )
        if config.transfer_number is not None:
            self._witness = witness_of(brief, self._recorder, self._draining)
            self._transfers = Transfers(
                brief,
                line=self._line,
                ask=partial(self._gateway.transfer, brief.call_id, token),
                post=post,
                delivered=self._reporter.delivered,
                on_hold=self._hold,
                on_over=self._end,
                witness=self._witness,
            )
        actions = Actions(
            tone=self._line.press,
            post=self._gate.post,
            hang_up=partial(self._end, "agent_hung_up"),
            transfer=no_transfer if self._transfers is None else self._transfers.transfer,
            recording=self._recording,
        )
        self._ambience = ambient_sound(config)
        if brief.direction == "outbound" and MachinePolicy.wanted(config):
            self._machine = MachinePolicy(
                config, post=self._gate.post, end=self._end, hush=self._stop_ambience, so_far=so_far
            )
        return Conversation(
            config,
            self._settings,
            brain_of(
                brief,
                self._tools(brief, actions),
                llm_client=self._llm_client,
                open_http=self._open_http,
                on_busy=partial(self._busy, "webhook"),
            ),
            self._line,
            post=self._gate.post,
            on_failed=lambda stage, why: self._end("provider_failed", f"{stage}: {why}"),
            on_busy=self._busy,
            on_heard=self._heard if self._machine else None,
            on_voice=takeover.resumed,
            greets=so_far is None or not so_far.greeted,
            tap=None if self._recorder is None else self._recorder.speak,
            opening=self._opening.speeches,
            clock=self._clock,
        )

    def _tools(self, brief: CallBrief, actions: Actions) -> ToolBox:
        machine = self._machine
        secrets = Secrets()
        assert self._tools_http is not None
        runs = runs_of(
            brief,
            secrets,
            gate=self._gate,
            reporter=self._reporter,
            now_ms=self._clock.now_ms,
            said=lambda: None if self._conversation is None else self._conversation.transcript,
        )
        return ToolBox(
            runs=runs,
            secrets=secrets,
            http=self._tools_http,
            post=self._gate.post,
            actions=actions,
            keypad=self._keys,
            language=brief.agent.config.language,
            leave_voicemail=machine.told if machine and machine.leaves_message else None,
            recorded=brief.recording is not None,
        )

    def _hold(self, on: bool) -> None:
        """Put the caller on hold or take them off it; speech and keys are ignored on hold."""
        if self._silence is not None:
            self._silence.busy("transfer", on)
        if self._conversation is not None:
            self._conversation.hold(on)
        if self._recorder is not None:
            self._recorder.hold(on)

    # Notifications from the line

    def ringing(self) -> None:
        if not self._inbound:  # an inbound call's record starts with ringing
            self._reporter.post("call.ringing")

    def answered(self) -> None:
        assert self._clocks is not None and self._takeover is not None
        self._takeover.answered(self._clock, self._clocks)
        if self._recorder is not None:
            self._recorder.start()

    def key(self, key: str) -> None:
        if self._witness is not None and self._witness.begun:
            return  # it is for the human
        self._gate.post("dtmf.received", {"digit": key})
        if self._silence is not None:
            self._silence.touch()
        if self._opening is None or not self._opening.pressed(key):
            self._keys.pressed(key)

    def commanded(self, command: Command) -> None:
        self._recording.obey(command)

    def typed(self, text: str) -> None:
        if self._silence is not None:
            self._silence.touch()
        if self._opening is not None and self._opening.typed(text):
            return
        if self._conversation is not None and self._is_ours and not self._recording.deaf:
            self._conversation.typed(text)

    def interrupted(self) -> None:
        if self._conversation is not None and self._is_ours:
            self._conversation.interrupt()

    def left(self, cause: Cause, detail: str) -> None:
        if self._takeover is not None:
            cause = self._takeover.left(cause)
        if self._transfers is None:
            self._end(cause, detail)
        else:
            self._transfers.caller_left(cause, detail)

    def lost(self, cause: Cause, detail: str) -> None:
        if cause == "agent_replaced":
            self._standing.replaced()
        self._end(cause, detail)

    # Events during the call

    def _keys_pressed(self, digits: str) -> None:
        if self._conversation is not None and self._is_ours:
            self._conversation.pressed(digits)

    def _busy(self, who: str, busy: bool) -> None:
        if self._silence is not None:
            self._silence.busy(who, busy)
        if self._machine is not None:
            self._machine.busy(who, busy)
        if self._opening is not None:
            self._opening.busy(who, busy)
        self._gate.busy(who, busy)

    def _heard(self, text: str, final: bool) -> None:
        if self._machine is not None and self._is_ours and not self._recording.deaf:
            self._machine.heard(text, final)

    def _prompt(self, text: str) -> None:
        if self._say(text):
            self._gate.post("silence.prompted", {"text": text})

    def _say(self, text: str) -> bool:
        return self._conversation is not None and self._is_ours and self._conversation.say(text)

    @property
    def _inbound(self) -> bool:
        return self._assignment is not None and self._assignment.brief.direction == "inbound"

    @property
    def _is_ours(self) -> bool:
        """True while the far end talks to the agent: not on hold, and not gone."""
        on_hold = self._transfers is not None and self._transfers.under_way
        return not on_hold and not self._over.done()

    def _walked(self, walk: asyncio.Task[None]) -> None:
        if not walk.cancelled() and (error := walk.exception()) is not None:
            log.error("the call failed", exc_info=error)
            self._end("worker_failed", type(error).__name__)

    # The end

    def _end(self, cause: Cause, detail: str = "") -> None:
        """End the call for the agent. The first cause counts; later ones only end a witness."""
        if not self._over.done():
            log.info("call over", extra={"cause": cause, "detail": detail})
            self._over.set_result((cause, detail))
        elif self._witness is not None:
            self._witness.over(cause)

    async def _finish(self, cause: Cause, detail: str) -> None:
        departure = Departure(
            line=self._line,
            reporter=self._reporter,
            standing=self._standing,
            clock=self._clock,
            gate=self._gate,
            recording=self._recording,
            recorder=self._recorder,
            conversation=self._conversation,
            transfers=self._transfers,
            witness=self._witness,
            stop_clocks=self._stop_clocks,
            stop_ambience=self._stop_ambience,
        )
        await departure.run(cause, detail)

    async def _stop_ambience(self) -> None:
        if self._ambience is not None:
            await self._ambience.stop()

    def _stop_clocks(self) -> None:
        if self._clocks is not None:
            self._clocks.stop()
        self._keys.close()
        self._recording.close()

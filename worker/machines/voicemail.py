"""The policy of an outbound call that a machine answers: go on, hang up, or leave a message.

The message is spoken when the box records, that is after the beep, or when the announcement has
been over for a while. It is spoken to its end, whatever the far end says, and ends the call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from core.audio import Pcm
from core.models import AgentConfig, OnVoicemail, now
from core.recovery import Recovered
from worker.machines.answering_machine import OPEN_FOR_S, FirstWords, Machine
from worker.machines.beep import BeepDetector
from worker.voice.prepared import PreparedSpeech
from worker.voice.transcript import Post

log = logging.getLogger(__name__)

LEAVE_VOICEMAIL = {
    "name": "leave_voicemail",
    "description": (
        "Leave the prepared message and hang up. Call it, without saying anything, when a "
        "voicemail box or an answering machine took the call, and no person."
    ),
    "parameters": {"type": "object", "properties": {}},
}

SAMPLE_RATE = 8000
_PLAYOUT_WITHIN_S = 300.0  # 2,000 characters take about 150 s

Ends = Literal["voicemail_reached", "ivr_reached"]


@dataclass(frozen=True, slots=True)
class Durations:
    """How long the policy waits, in seconds."""

    open_for_s: float = OPEN_FOR_S
    after_beep_s: float = 0.3  # some boxes lose the first moments of a recording
    silence_s: float = 1.5  # ends an announcement; pauses inside one are shorter
    tone_within_s: float = 3.0  # the same if a tone was announced
    announcement_within_s: float = 60.0


class Speaker(Protocol):
    """The part of worker.voice.conversation that the policy uses."""

    def fall_silent(self) -> None:
        """Stop talking, and answer no more turns."""

    async def synthesise(self, speech: PreparedSpeech) -> bool:
        """Synthesise ``speech``; return False if the TTS failed, which is reported already."""

    async def recite(self, speech: PreparedSpeech) -> bool:
        """Say ``speech`` without interruption; return False if something stopped it."""


class MachinePolicy:
    """The policy of one outbound call. All methods run on the event loop.

    ``end`` ends the call. ``hush`` stops all other sound of the agent and returns when it is
    silent, so that the box records nothing but the message.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        post: Post,
        end: Callable[[Ends], None],
        hush: Callable[[], Coroutine[Any, Any, None]],
        durations: Durations = Durations(),
        so_far: Recovered | None = None,
    ) -> None:
        """``so_far``: of the call that this agent takes over."""
        self._so_far = so_far
        self._message = config.voicemail_message
        self._on_voicemail = config.voicemail_policy
        self._on_ivr = config.on_ivr
        self._post = post
        self._end = end
        self._hush = hush
        self._durations = durations
        self._first: FirstWords | None = None
        self._recognised: asyncio.Future[Machine] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._speaking = False
        self._silent_since = 0.0
        self._beeped_at: float | None = None

    @classmethod
    def wanted(cls, config: AgentConfig) -> bool:
        """Return True if the agent's outbound calls need a policy."""
        return bool(config.voicemail_message) or (
            config.voicemail_policy != "continue" or config.on_ivr != "continue"
        )

    @property
    def detects(self) -> bool:
        """True if the call is examined for machines. If not, the LLM may still recognise one."""
        return self._on_voicemail != "continue" or self._on_ivr != "continue"

    @property
    def leaves_message(self) -> bool:
        """True if the LLM may have the message left (``told``)."""
        return bool(self._message) and self._on_voicemail != "hang_up"

    def heard(self, text: str, final: bool) -> None:
        """Take a transcript of the far end."""
        now = _now()
        if self._first is None:
            return
        if not self._first.open(now) and not self._recognised.done():
            return  # a person answered; do not search their words for the rest of the call
        machine = self._first.heard(text, now, final=final)
        if machine is not None and self._first.open(now) and self._policy(machine) != "continue":
            self._decide(machine)
        self._changed.set()

    def busy(self, who: str, busy: bool) -> None:
        """Note that the ``caller`` (the far end) starts or stops speaking."""
        if who != "caller" or self._first is None:
            return
        now = _now()
        self._first.speech(busy, now)
        self._speaking = busy
        if busy:
            self._beeped_at = None  # it was not a beep, or not the last one
        else:
            self._silent_since = now
        self._changed.set()

    def told(self) -> None:
        """Leave the message, because the agent itself has recognised a voicemail box."""
        self._on_voicemail = "leave_message"
        self._decide(Machine("voicemail", "leave_voicemail"))

    async def run(self, speaker: Speaker, audio: Callable[[], AsyncGenerator[Pcm]]) -> None:
        """Wait from the answer on for a machine, and apply the policy. May be cancelled.

        ``audio`` is the far end's audio at 8 kHz.
        """
        answered_at = self._silent_since = _now()
        opening = True
        if (so_far := self._so_far) is not None and so_far.answered_at is not None:
            answered_at -= (now() - so_far.answered_at).total_seconds()
            opening = not any(turn.transcript for turn in so_far.turns)
        self._first = FirstWords(
            answered_at, open_for_s=self._durations.open_for_s, opening=opening
        )
        async with asyncio.TaskGroup() as tasks:
            ear = tasks.create_task(self._listen(audio)) if self.detects else None
            machine = self._known() or await self._recognised
            if not self._known():
                after_ms = round((_now() - answered_at) * 1000)
                facts = {"kind": machine.kind, "afterMs": after_ms, "evidence": machine.evidence}
                self._post("machine.detected", facts)
                log.info("a machine answered", extra={"kind": machine.kind})
            if ear is None or ear.done():
                ear = tasks.create_task(self._listen(audio))
            await self._act(machine, speaker)
            ear.cancel()

    @property
    def decided(self) -> bool:
        """True if a former agent has recognised a machine."""
        return self._known() is not None

    def _known(self) -> Machine | None:
        kind = None if self._so_far is None else self._so_far.machine
        return None if kind is None else Machine(kind, "")

    def _decide(self, machine: Machine) -> None:
        if not self._recognised.done():
            self._recognised.set_result(machine)

    def _policy(self, machine: Machine) -> OnVoicemail:
        policy = self._on_voicemail if machine.kind == "voicemail" else self._on_ivr
        if policy == "continue" and self.decided and machine.kind == "voicemail" and self._message:
            return "leave_message"  # the former agent's LLM recognised it (``told``)
        return policy

    async def _act(self, machine: Machine, speaker: Speaker) -> None:
        speaker.fall_silent()
        left = self._so_far is not None and self._so_far.voicemail_left
        if self._policy(machine) == "leave_message" and not left:
            await self._leave_message(speaker)
        self._end("voicemail_reached" if machine.kind == "voicemail" else "ivr_reached")

    async def _leave_message(self, speaker: Speaker) -> None:
        assert self._message
        message = PreparedSpeech(self._message)
        async with asyncio.TaskGroup() as tasks:
            hushed = tasks.create_task(self._hush())
            # Not earlier, because most calls reach people and synthesis costs money.
            made = tasks.create_task(speaker.synthesise(message))
            if not await self._records():
                made.cancel()
                return
            await hushed
            try:
                async with asyncio.timeout(_PLAYOUT_WITHIN_S):
                    left = await speaker.recite(message) and await made
            except TimeoutError:
                log.warning("the message was not completed")
                made.cancel()
                return
        if left:
            self._post("voicemail.left", {"durationMs": round(message.duration_s * 1000)})

    async def _records(self) -> bool:
        """Wait until the box records; return False if it takes no message or keeps talking."""
        try:
            async with asyncio.timeout(self._durations.announcement_within_s):
                while self._first is None or not self._first.takes_no_message:
                    patience_s = self._patience_s()
                    if patience_s is not None and patience_s <= 0:
                        return True
                    self._changed.clear()
                    await _event_within(self._changed, patience_s)
                return False
        except TimeoutError:
            log.info("the announcement does not end")
            return False

    def _patience_s(self) -> float | None:
        """Return how long nothing must change before the message may begin; None while it talks."""
        durations = self._durations
        if self._beeped_at is not None:
            return self._beeped_at + durations.after_beep_s - _now()
        if self._speaking:
            return None
        expected = self._first is not None and self._first.expects_tone
        wait_s = durations.tone_within_s if expected else durations.silence_s
        return self._silent_since + wait_s - _now()

    async def _listen(self, audio: Callable[[], AsyncGenerator[Pcm]]) -> None:
        """Listen for a beep while a machine may still be recognised."""
        detector = BeepDetector(SAMPLE_RATE)
        async with aclosing(audio()) as pieces:
            async for piece in pieces:
                if detector.feed(piece):
                    self._beeped_at = _now()
                    self._changed.set()
                open_still = self._first is not None and self._first.open(_now())
                if not open_still and not self._recognised.done():
                    return


async def _event_within(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until ``event`` is set, for at most ``seconds`` if given."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()

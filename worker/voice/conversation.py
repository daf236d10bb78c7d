"""The conversation of a call: its session, greeting, turns and failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from livekit.agents import (
    NOT_GIVEN,
    AgentStateChangedEvent,
    CloseEvent,
    ConversationItemAddedEvent,
    ErrorEvent,
    NotGivenOr,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
    llm,
)
from livekit.agents.voice import SpeechHandle, io

from core.models import AgentConfig, Turn
from core.settings import Settings
from worker.line import Line
from worker.timing.call_clock import CallClock
from worker.timing.first_sound import report_missing_sound
from worker.timing.turn_clock import TurnClock
from worker.voice import pipeline
from worker.voice.brain import Brain
from worker.voice.earlier.history import forget, note
from worker.voice.earlier.replies import reply_after, reply_to
from worker.voice.failures import Failures, apologise, apology
from worker.voice.fallback import describe
from worker.voice.keys import pressed
from worker.voice.last_words import LastWords
from worker.voice.prepared import PreparedSpeech
from worker.voice.providers import Providers, provider_names
from worker.voice.transcript import Post, Transcript, spoken_text
from worker.voice.turn_taking import hearing

log = logging.getLogger(__name__)

Deaf = Literal["hold", "mask"]

_CLOSE_WITHIN_S = 10.0
_INTERRUPT_WITHIN_S = 2.0


class Conversation:
    """An agent on one call. It says nothing before ``answered``, and hears only callers before it.

    ``opening`` is synthesised before the greeting, and said by worker.opening.
    ``on_failed(stage, message)`` is called when a provider failed for good,
    ``on_busy(who, busy)`` when caller or agent start or stop speaking or thinking,
    ``on_heard(text, final)`` with interim and final transcripts of the far end,
    ``on_voice`` each time the first sound of a speech leaves.
    """

    def __init__(
        self,
        config: AgentConfig,
        settings: Settings,
        brain: Brain,
        line: Line,
        *,
        post: Post,
        on_failed: Callable[[str, str], None],
        on_busy: Callable[[str, bool], None],
        on_heard: Callable[[str, bool], None] | None = None,
        on_voice: Callable[[], None] = lambda: None,
        greets: bool = True,
        tap: Callable[[io.AudioOutput], io.AudioOutput] | None = None,
        opening: Sequence[PreparedSpeech] = (),
        clock: CallClock,
    ) -> None:
        """``tap`` returns an output that listens to the agent's voice on its way to the line.

        ``greets``: the caller has not heard the greeting yet.
        """
        self._config = config
        self._post = post
        self._on_failed = on_failed
        self._on_busy = on_busy
        self._on_heard = on_heard
        self._on_voice = on_voice
        self._brain = brain
        self._line = line
        self._tap = tap
        brain.agent.takes_turn = self._takes_turn
        self._providers = Providers(config, settings, line.rates)
        self._session = pipeline.build_session(
            self._providers, config, settings, brain.llm, post, guesses=brain.guesses
        )
        brain.attach(self._session)
        self._last_words = LastWords(self._session)
        self._failures = Failures(provider_names(config), post, on_failed)
        self._clock = TurnClock(
            settings.endpointing_ms / 1000,
            lambda: clock.both_ways_ms,
            origins=self._providers.origins,
        )
        brain.agent.listens = self._clock.listen
        brain.agent.hears = self._clock.hear
        self._transcript = Transcript(post, self._clock, clock)
        text = config.begin_message if greets else None
        self._greeting = PreparedSpeech(text) if text else None
        self._greeted_by: SpeechHandle | None = None
        self._prepared = [*opening] if self._greeting is None else [*opening, self._greeting]
        self._diverted: Callable[[str], None] | None = None
        self._unasked: list[SpeechHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = asyncio.Event()
        self._silent = False
        self._deaf: set[Deaf] = set()
        self._closing = False
        self._session.on("conversation_item_added", self._item_added)
        self._session.on("user_state_changed", self._caller_changed)
        self._session.on("agent_state_changed", self._agent_changed)
        self._session.on("user_input_transcribed", self._heard)
        self._session.on("function_tools_executed", self._clock.tools_ran)
        self._session.on("error", self._provider_failed)
        self._session.on("close", self._closed)

    @property
    def transcript(self) -> Transcript:
        return self._transcript

    def hold(self, on: bool) -> None:
        """Stop listening to the caller, or listen again. A pending turn is not answered."""
        self._deafen("hold", on)

    def mask(self, on: bool) -> None:
        """Do as on hold; words that are being understood when it begins are dropped."""
        self._deafen("mask", on)
        if on:
            with contextlib.suppress(RuntimeError):  # not started, or closed
                self._session.clear_user_turn()

    def _deafen(self, why: Deaf, on: bool) -> None:
        (self._deaf.add if on else self._deaf.discard)(why)
        self._session.input.set_audio_enabled(not self._deaf)

    async def start(self, *, inbound: bool) -> None:
        """Start the session on the line."""
        # Outbound: ringback and announcements before the answer are no turns. Inbound: a caller
        # may speak as soon as the agent has answered, and is heard from the first frame.
        if not inbound:
            self._session.input.set_audio_enabled(False)
        await self._line.start(self._session, self._brain.agent)
        if (mouth := self._session.output.audio) is not None:
            self._session.output.audio = self._clock.speak(self._tap(mouth) if self._tap else mouth)
        self._started.set()

    async def prepare(self) -> None:
        """Warm up the TTS, synthesise opening and greeting. May be called before ``start``.

        STT and LLM connect by themselves when the session starts.
        """
        engine = self._session.tts
        assert engine is not None
        if not self._prepared:
            engine.prewarm()
        for speech in self._prepared:
            if error := await speech.synthesise(
                engine, self._session.conn_options.tts_conn_options
            ):
                # Once the session runs, it has reported the failure itself.
                if not self._failures.given_up:
                    self._failures.tell("tts", describe(error), recoverable=False)
                return
        await self._started.wait()
        self._post("agent.ready", self._failures.names)

    def answered(self) -> None:
        """Start listening."""
        self._session.input.set_audio_enabled(not self._deaf)

    def greet(self, line: PreparedSpeech | None = None, owed: Turn | None = None) -> None:
        """Say the greeting, if the agent has one. From now on the far end should be heard.

        An agent that takes over says ``line`` before, and then answers ``owed``, the caller's last
        turn, unless the caller speaks first: then one answer is for both.
        """
        self._spawn(report_missing_sound(self._clock.sounded, self._post, listens=self._listens))
        if self._closing or self._silent:
            return
        first = [] if line is None else [self._say(line)]
        if self._greeting is not None:
            self._greeted_by = self._say(self._greeting)
            first.append(self._greeted_by)
        if owed is not None:
            self._transcript.go_on(owed)
            reply_after(self._session, first)

    async def said(self) -> None:
        """Wait until the last speech that nobody asked for is over."""
        if self._unasked:
            await self._unasked[-1].wait_for_playout()

    async def note(self, text: str) -> None:
        """Let the brain's model know a fact that nobody said."""
        await note(self._brain.agent, text)

    def _listens(self) -> bool:
        """Return True unless livekit-agents replaces what the caller says by silence."""
        speech = self._session.current_speech
        heard = speech is None or speech.allow_interruptions
        return heard and not self._deaf and not self._closing

    @property
    def silenced(self) -> bool:
        """True after ``fall_silent``."""
        return self._silent

    def divert(self, turns: Callable[[str], None] | None) -> None:
        """Pass the caller's turns to ``turns`` only, or let them be answered again.

        A diverted turn is neither kept nor answered, and nothing is said unasked meanwhile.
        """
        self._diverted = turns
        guesses = self._session.options.preemptive_generation
        guesses["enabled"] = self._brain.guesses and turns is None

    def pressed(self, digits: str) -> None:
        """Answer keys as a turn of the caller."""
        self._asked(pressed(digits))

    def typed(self, text: str) -> None:
        """Answer written words as a turn of the caller."""
        self._asked(llm.ChatMessage(role="user", content=[text]))

    def interrupt(self) -> None:
        """Stop the current speech, unless it must be said to its end."""
        if not self._closing:
            with contextlib.suppress(RuntimeError):
                self._session.interrupt()

    def _asked(self, message: llm.ChatMessage) -> None:
        if not self._closing and not self._silent:
            self._spawn(reply_to(self._session, message, wanted=lambda: self._answers))

    @property
    def _answers(self) -> bool:
        return not (self._closing or self._silent or self._deaf)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def warm(self) -> None:
        """Warm up the brain. Not bounded."""
        await self._brain.warm()

    def fall_silent(self) -> None:
        """Stop talking, and answer no more turns. Turns still go on the record."""
        self._silent = True
        if not self._closing:
            self._session.interrupt(force=True)

    async def synthesise(self, speech: PreparedSpeech) -> bool:
        """Synthesise ``speech``; return False if the TTS failed, which the session reports."""
        engine = self._session.tts
        assert engine is not None
        options = self._session.conn_options.tts_conn_options
        return await speech.synthesise(engine, options) is None

    async def recite(self, speech: PreparedSpeech) -> bool:
        """Say ``speech`` without interruption; return False if something stopped it."""
        if self._closing:
            return False
        # Speech heard during an uninterruptible speech is dropped, so commit what came before.
        self._last_words.commit()
        await self.hush()
        spoken = self._say(speech, allow_interruptions=False)
        await spoken.wait_for_playout()
        return not spoken.interrupted

    async def announce(self, speech: PreparedSpeech, *, attentive: bool) -> bool:
        """Say ``speech``, which the caller cannot interrupt; return False if it was stopped.

        ``attentive``: hear the caller meanwhile, and keep ``speech`` in the conversation's history.
        """
        if self._closing or self._silent:
            return False
        try:
            with hearing(self._session, attentive):
                spoken = self._say(speech, allow_interruptions=False)
                await spoken.wait_for_playout()
        except RuntimeError as error:
            log.warning("not said", extra={"error": str(error)})
            return False
        if not attentive:
            await forget(self._brain.agent, {item.id for item in spoken.chat_items})
        return not spoken.interrupted

    async def hush(self) -> None:
        """Stop the current speech, even one that cannot be interrupted."""
        await asyncio.wait([self._session.interrupt(force=True)], timeout=_INTERRUPT_WITHIN_S)

    def say(self, text: str) -> bool:
        """Say ``text`` unasked, as its own turn, after the current speech; False if impossible."""
        if self._closing or self._silent or self._diverted is not None:
            return False
        try:
            self._unasked.append(self._session.say(text))
        except RuntimeError as error:
            log.warning("not said", extra={"error": str(error)})
            return False
        return True

    async def apologise(self) -> None:
        """Apologise in the agent's language, if the session can still speak."""
        text = apology(self._config)
        if text is not None and not self._closing:
            await apologise(self._session, text, self._unasked.append)

    async def conclude(self) -> None:
        """Stop talking, and put what was said and heard so far on the record. Bounded."""
        self._transcript.hung_up()
        await self._last_words.conclude()

    def hung_up(self) -> None:
        """Note the hang-up: the current speech was not interrupted by the caller."""
        self._closing = True
        self._transcript.hung_up()

    async def aclose(self) -> None:
        """Close the session, which posts the last turns, and the brain."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await self._session.aclose()
        except TimeoutError:
            log.error("the session did not close in time")
        await self._brain.aclose()
        await self._providers.aclose()

    def _say(
        self, speech: PreparedSpeech, *, allow_interruptions: NotGivenOr[bool] = NOT_GIVEN
    ) -> SpeechHandle:
        spoken = self._session.say(
            speech.words(), audio=speech.audio(), allow_interruptions=allow_interruptions
        )
        self._unasked.append(spoken)
        return spoken

    def _item_added(self, event: ConversationItemAddedEvent) -> None:
        item = event.item
        if isinstance(item, llm.ChatMessage):
            unasked = any(item in speech.chat_items for speech in self._unasked)
            self._transcript.add(item, unasked=unasked)

    def _takes_turn(self, message: llm.ChatMessage) -> bool:
        if self._diverted is not None:
            self._diverted(spoken_text(message))
            return False
        quiet = self._silent or bool(self._deaf)
        if quiet:
            self._transcript.add(message)
        return not quiet

    def _heard(self, event: UserInputTranscribedEvent) -> None:
        if event.is_final:
            self._clock.understood()
        if self._on_heard is not None:
            self._on_heard(event.transcript, event.is_final)

    def _caller_changed(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._clock.loud(event.created_at)
        if event.old_state == "speaking":
            self._clock.quiet()
        self._on_busy("caller", event.new_state == "speaking")

    def _agent_changed(self, event: AgentStateChangedEvent) -> None:
        self._on_busy("agent", event.new_state in {"thinking", "speaking"})
        if event.new_state == "speaking":
            self._on_voice()
            if (greeted_by := self._greeted_by) and greeted_by is self._session.current_speech:
                self._greeted_by = None
                self._post("greeting.started", {})

    def _provider_failed(self, event: ErrorEvent) -> None:
        if not self._closing:
            self._failures.of(event)

    def _closed(self, event: CloseEvent) -> None:
        if not self._closing:
            self._on_failed("session", event.reason.value)

"""The brain of an agent whose turns the tenant's webhook answers. No LLM is used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from livekit.agents import (
    AgentSession,
    FlushSentinel,
    ModelSettings,
    SpeechCreatedEvent,
    llm,
)
from livekit.agents.types import TimedString
from livekit.agents.voice import SpeechHandle

from core.jobs import CallBrief
from core.models import now
from core.url_guard import OpenSession
from worker.brains.webhook_client import Exchange, WebhookClient, WebhookFailed
from worker.brains.webhook_reply import Reply
from worker.brains.webhook_turn import voice_turn
from worker.tools.actions import ActionFailed, Actions
from worker.voice.earlier.history import history
from worker.voice.phrasing import in_phrases
from worker.voice.turn_agent import TurnAgent

log = logging.getLogger(__name__)

Post = Callable[[str, dict[str, Any]], object]

MAX_TEXT = 10_000
"""The most characters spoken in one turn: over ten minutes."""

_UNKNOWN = "only transfer, hangup, pause_recording and resume_recording can be asked for"

# The speech of the current answer. The session emits ``speech_created`` and then creates the task
# that asks for the answer, in the same context.
_speech: ContextVar[SpeechHandle] = ContextVar("speech")


@dataclass(slots=True)
class _Asked:
    """The actions that a turn's reply requests for when its text has been spoken."""

    digits: list[str] = field(default_factory=list)
    transfer: bool = False
    hang_up: bool = False
    unknown: list[str] = field(default_factory=list)

    def note(self, reply: Reply) -> None:
        if reply.digits:
            self.digits.append(reply.digits)
        action = (reply.action or "").strip().lower()
        self.hang_up |= bool(reply.hangup) or action == "hangup"
        self.transfer |= action == "transfer"
        if action not in ("", "hangup", "transfer"):
            self.unknown.append(action)

    def __bool__(self) -> bool:
        return bool(self.digits or self.transfer or self.hang_up or self.unknown)


class WebhookBrain:
    """A worker.voice.brain.Brain. ``post`` appends to the call's timeline. ``on_busy`` is called
    when the wait for an answer starts and ends. If the brief has no webhook, every turn fails."""

    # A turn is POSTed once, so it must be over first.
    guesses = False

    def __init__(
        self,
        brief: CallBrief,
        *,
        actions: Actions,
        post: Post,
        on_busy: Callable[[bool], None],
        open_http: OpenSession,
    ) -> None:
        self._brief = brief
        self._client = WebhookClient(brief.webhook, open_http) if brief.webhook else None
        self._actions = actions
        self._post = post
        self._on_busy = on_busy
        self._session: AgentSession[None] | None = None
        self._awaited = 0
        self._doing: set[asyncio.Task[None]] = set()
        self.agent = _WebhookAgent(self, history(brief.recovered))
        self.llm = _NoModel()

    def attach(self, session: AgentSession[None]) -> None:
        self._session = session
        session.on("speech_created", _remember)

    async def warm(self) -> None:
        if self._client is not None:
            await self._client.preconnect()

    async def aclose(self) -> None:
        for task in self._doing:
            task.cancel()
        await asyncio.gather(*self._doing, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def answer(self, messages: list[llm.ChatMessage]) -> AsyncGenerator[str, None]:
        """Yield the text that answers the caller's last message, as it arrives."""
        asked = _Asked()
        exchange = Exchange.begin()
        spoken = 0
        outcome, reason = "webhook.aborted", None
        self._awaited += 1
        self._on_busy(True)
        try:
            async with contextlib.aclosing(self._texts(messages, exchange, asked)) as texts:
                async for text in texts:
                    if spoken + len(text) > MAX_TEXT:
                        raise WebhookFailed(f"More than {MAX_TEXT} characters to say")
                    spoken += len(text)
                    yield text
            outcome = "webhook.replied"
        except WebhookFailed as failure:
            outcome, reason = "webhook.failed", str(failure)
            fallback = self._brief.agent.config.fallback_message
            if fallback and not spoken:
                yield fallback
        finally:
            self._awaited -= 1
            self._on_busy(self._awaited > 0)
            self._tell(outcome, reason, exchange)
        if asked:  # if the reply broke off, the actions received until then
            self._when_spoken(asked)

    async def _texts(
        self, messages: list[llm.ChatMessage], exchange: Exchange, asked: _Asked
    ) -> AsyncGenerator[str, None]:
        webhook = self._brief.webhook
        if self._client is None or webhook is None:
            raise WebhookFailed("No webhook is set")
        message_id, body = voice_turn(
            self._brief, messages, context_limit=webhook.context_limit, at=now()
        )
        async with contextlib.aclosing(self._client.replies(body, exchange, message_id)) as replies:
            async for reply in replies:
                if self._records(reply.action):
                    reply = reply.model_copy(update={"action": None})
                asked.note(reply)
                if asked.hang_up:
                    self._let_it_finish()
                if reply.text:
                    yield reply.text

    def _records(self, action: str | None) -> bool:
        """Pause or resume the recording at once, whether or not the text is spoken to its end."""
        match (action or "").strip().lower():
            case "pause_recording":
                self._actions.recording.pause("agent")
            case "resume_recording":
                self._actions.recording.resume("agent")
            case _:
                return False
        return True

    def _tell(self, event: str, reason: str | None, exchange: Exchange) -> None:
        facts: dict[str, Any] = {"status": exchange.status, "durationMs": exchange.elapsed_ms}
        if reason is not None:
            facts["reason"] = reason
        if exchange.first_reply_ms is not None:
            facts["firstReplyMs"] = exchange.first_reply_ms
        if exchange.skipped:
            facts["skipped"] = exchange.skipped
            log.warning("lines of a webhook's reply skipped", extra={"lines": exchange.skipped})
        self._post(event, facts)

    def _let_it_finish(self) -> None:
        """Make a goodbye uninterruptible, unless it was interrupted already, or the caller speaks
        now and may be interrupting it."""
        if self._session is not None and self._session.user_state == "speaking":
            return
        with contextlib.suppress(RuntimeError):
            _speech.get().allow_interruptions = False

    def _when_spoken(self, asked: _Asked) -> None:
        def spoken(speech: SpeechHandle) -> None:
            if speech.interrupted:
                return
            task = asyncio.create_task(self._do(asked), name="webhook actions")
            self._doing.add(task)
            task.add_done_callback(self._doing.discard)

        _speech.get().add_done_callback(spoken)

    async def _do(self, asked: _Asked) -> None:
        for digits in asked.digits:
            await self._try("digits", self._actions.press(digits))
        for action in asked.unknown:
            self._refused(action, _UNKNOWN)
        if asked.transfer:
            await self._try("transfer", self._actions.transfer())
        if asked.hang_up:
            self._actions.hang_up()

    async def _try(self, name: str, action: Awaitable[object]) -> None:
        try:
            await action
        except ActionFailed as failure:
            self._refused(name, str(failure))
        except Exception:  # the following actions, a hang-up above all, must still be done
            log.exception("an action requested by a webhook failed", extra={"action": name})
            self._refused(name, "it could not be done")

    def _refused(self, action: str, reason: str) -> None:
        self._post("webhook.action_failed", {"action": action, "reason": reason})


def _remember(event: SpeechCreatedEvent) -> None:
    if event.source == "generate_reply":
        _speech.set(event.speech_handle)


class _WebhookAgent(TurnAgent):
    def __init__(self, brain: WebhookBrain, chat_ctx: llm.ChatContext) -> None:
        super().__init__(instructions="", chat_ctx=chat_ctx)
        self._brain = brain
        self._begun: WeakSet[SpeechHandle] = WeakSet()

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterator[str | FlushSentinel]:
        messages = [item for item in chat_ctx.items if isinstance(item, llm.ChatMessage)]
        async with (
            contextlib.aclosing(self._brain.answer(messages)) as texts,
            contextlib.aclosing(in_phrases(texts)) as phrases,
        ):
            async for phrase in phrases:
                yield phrase

    async def transcription_node(
        self, text: AsyncIterable[str | TimedString], model_settings: ModelSettings
    ) -> AsyncIterator[str | TimedString]:
        """Restore the space before a phrase, which a TTS with word times drops."""
        speech = _speech.get(None)
        apart = speech is not None and speech in self._begun
        if speech is not None:
            self._begun.add(speech)
        async for words in text:
            yield _spaced(words) if apart and words else words
            apart = apart and not words


def _spaced(words: str | TimedString) -> str | TimedString:
    if words[0].isspace():
        return words
    if not isinstance(words, TimedString):
        return f" {words}"
    return TimedString(f" {words}", start_time=words.start_time, end_time=words.end_time)


class _NoModel(llm.LLM[str]):
    """A placeholder: a session without an LLM answers no turns."""

    def chat(self, **_: Any) -> llm.LLMStream:
        """Never called, because ``_WebhookAgent.llm_node`` asks the webhook."""
        raise RuntimeError("turns are answered by a webhook")

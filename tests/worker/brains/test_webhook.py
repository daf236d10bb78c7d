"""A webhook that answers the turns of a real session: in text, without a room."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from livekit.agents import AgentSession, llm

from core.jobs import CallBrief, VoiceWebhook
from core.models import Agent, AgentConfig, Turn, now
from core.recovery import Recovered
from core.url_guard import guarded_session
from core.webhooks.signing import new_secret
from tests.support.receiver import Received, Receiver, receiving, served
from tests.worker.privacy.masked import Masked
from worker.brains.webhook import _UNKNOWN, MAX_TEXT, WebhookBrain
from worker.tools.actions import Actions, no_transfer
from worker.voice.keys import pressed
from worker.voice.transcript import message_id_of, turn_id_of

pytestmark = pytest.mark.unit

OWN = "of the call's receiver"
NDJSON = {"Content-Type": "application/x-ndjson"}


@dataclass
class Call:
    """One call's turns; ``log`` has their effects in order."""

    brain: WebhookBrain
    session: AgentSession[None]
    receiver: Receiver
    log: list[tuple[str, Any]]
    done: asyncio.Condition = field(default_factory=asyncio.Condition)

    def answer(self, *chunks: dict[str, Any]) -> None:
        async def reply(_received: Received) -> web.StreamResponse:
            return web.Response(body="\n".join(map(json.dumps, chunks)), headers=NDJSON)

        self.receiver.answers["/"] = reply

    async def turn(self, words: str | llm.ChatMessage) -> str:
        """Give the agent a turn; return what it said."""
        message = words if isinstance(words, str) else None
        speech = self.session.generate_reply(user_input=message or words)
        async with asyncio.timeout(20):
            await speech.wait_for_playout()
        # Actions that follow a speech begin when it ends.
        await asyncio.sleep(0)
        await asyncio.gather(*self.brain._doing)
        return " ".join(
            item.text_content or ""
            for item in speech.chat_items
            if isinstance(item, llm.ChatMessage) and item.role == "assistant"
        )

    def told(self, event: str) -> list[dict[str, Any]]:
        return [data for name, data in self.log if name == event]


def brief(url: str | None, **changes: Any) -> CallBrief:
    webhook = None
    if url is not None:
        limit = changes.pop("context_limit", 10)
        webhook = VoiceWebhook(url=url, secret=new_secret(), context_limit=limit, timeout_s=20)
    config = AgentConfig(name="Anna", **changes)
    return CallBrief(
        call_id="call_1",
        phone_number_id="num_1",
        direction="inbound",
        participant_identity="sip_1",
        from_number="+15550100",
        to_number="+15550101",
        metadata={},
        max_duration_ms=1_000,
        agent=Agent(id="agt_1", version=1, config=config),
        webhook=webhook,
    )


@asynccontextmanager
async def talking(
    *, url: str | None = OWN, transfer: Any = no_transfer, **changes: Any
) -> AsyncIterator[Call]:
    log: list[tuple[str, Any]] = []

    def post(event: str, data: dict[str, Any]) -> None:
        log.append((event, data))

    async def tone(key: str) -> None:
        log.append(("key", key))

    async with receiving() as receiver:
        actions = Actions(
            tone=tone,
            post=post,
            hang_up=lambda: log.append(("hung up", None)),
            transfer=transfer,
            recording=Masked(post).control,
        )
        given = brief(f"{receiver.url}/" if url == OWN else url, **changes)
        brain = WebhookBrain(
            given,
            actions=actions,
            post=post,
            on_busy=lambda busy: log.append(("busy", busy)),
            open_http=partial(guarded_session, allow_private=True),
        )
        session: AgentSession[None] = AgentSession(llm=brain.llm)
        brain.attach(session)
        session.on("conversation_item_added", lambda event: log.append((event.item.role, None)))
        await session.start(brain.agent, record=False)
        try:
            yield Call(brain, session, receiver, log)
        finally:
            await session.aclose()
            await brain.aclose()


async def test_a_turn_is_posted_once_and_its_answer_is_said() -> None:
    async with talking() as call:
        call.answer({"text": "Let me check.", "interim": True}, {"text": "It is free."})
        assert await call.turn("Is it free?") == "Let me check. It is free."
        (received,) = call.receiver.received
        assert received.body["agentId"] == "agt_1"
        assert received.body["conversationState"] is None
        assert received.body["recentHistory"] == []
        assert received.body["data"] == {
            "callId": "call_1",
            "numberId": "num_1",
            "from": "+15550100",
            "to": "+15550101",
            "status": "in-progress",
            "transcript": "Is it free?",
            "confidence": None,
            "direction": "inbound",
        }
        assert [data for name, data in call.log if name == "busy"] == [True, False]
        (told,) = call.told("webhook.replied")
        assert told["status"] == 200
        assert 0 <= told["firstReplyMs"] <= told["durationMs"]


async def test_every_turn_has_an_id_of_its_own_which_the_next_agent_knows() -> None:
    words = "Is it free?"
    async with talking() as first, talking() as second:
        for call in (first, second):
            call.answer({"text": "Yes."})
        await first.turn("Hello?")
        asked = llm.ChatMessage(role="user", content=[words])
        await first.turn(asked)
        turn = Turn(id=turn_id_of(asked), transcript=words)
        so_far = Recovered(epoch=1, lost_at=now(), turns=[turn])
        second.brain._brief = second.brain._brief.model_copy(update={"recovered": so_far})
        await second.turn(llm.ChatMessage(id=message_id_of(turn.id), role="user", content=[words]))
        await second.turn("And now?")
        received = [*first.receiver.received, *second.receiver.received]
    ids = [each.id for each in received]
    assert ids[1] == ids[2]
    assert (len(ids), len(set(ids))) == (4, 3)
    assert all(id.startswith("msg_call_1_turn_") for id in ids)
    marks = [each.body["data"].get("resent") for each in received]
    assert marks == [None, None, True, None]


async def test_the_history_is_what_was_said_before() -> None:
    async with talking(context_limit=3) as call:
        call.answer({"text": "One."})
        for words in ("First?", "Second?", "Third?"):
            await call.turn(words)
        history = call.receiver.received[-1].body["recentHistory"]
        assert [(entry["content"], entry["direction"]) for entry in history] == [
            ("One.", "outbound"),
            ("Second?", "inbound"),
            ("One.", "outbound"),
        ]
        assert all(entry["channel"] == "voice" for entry in history)
        times = [entry["at"] for entry in history]
        assert times == sorted(times)
        assert times[-1] <= call.receiver.received[-1].body["timestamp"]


async def test_no_history_when_none_is_wanted() -> None:
    async with talking(context_limit=0) as call:
        call.answer({"text": "One."})
        await call.turn("First?")
        await call.turn("Second?")
        assert call.receiver.received[-1].body["recentHistory"] == []


async def test_keys_are_a_turn() -> None:
    async with talking() as call:
        call.answer({"text": "Thank you."})
        assert await call.turn(pressed("12#")) == "Thank you."
        data = call.receiver.received[0].body["data"]
        assert (data["transcript"], data["digits"]) == ("[The caller pressed 12#]", "12#")


@pytest.mark.parametrize(
    "chunks",
    [
        [{"text": "Goodbye.", "hangup": True}],
        [{"text": "Goodbye.", "action": "hangup"}],
        [{"text": "Goodbye.", "action": " Hangup ", "interim": True}],
        [{"hangup": True, "interim": True}, {"text": "Goodbye."}],
    ],
)
async def test_hangs_up_after_the_text(chunks: list[dict[str, Any]]) -> None:
    async with talking() as call:
        call.answer(*chunks)
        assert await call.turn("Bye.") == "Goodbye."
        names = [name for name, _ in call.log]
        assert names.index("assistant") < names.index("hung up")
        assert names.count("hung up") == 1


async def test_hangs_up_without_a_word() -> None:
    async with talking() as call:
        call.answer({"hangup": True})
        assert await call.turn("Bye.") == ""
        assert call.log[-1] == ("hung up", None)


async def test_presses_keys_then_transfers() -> None:
    log = []

    async def transfer() -> None:
        log.append("transferred")

    async with talking(transfer=transfer) as call:
        call.answer({"text": "One moment.", "digits": "1#", "action": "transfer"})
        await call.turn("A person, please.")
        assert [data for name, data in call.log if name == "key"] == ["1", "#"]
        assert call.told("dtmf.sent") == [{"digits": "1#"}]
        assert log == ["transferred"]
        assert call.told("webhook.action_failed") == []


async def test_the_recording_is_paused_at_once_and_nothing_else_is_lost() -> None:
    async with talking() as call:
        call.answer(
            {
                "text": "Now your card.",
                "action": " Pause_Recording",
                "digits": "1",
                "interim": True,
            },
            {"text": "Thank you.", "action": "resume_recording"},
        )
        assert await call.turn("I pay by card") == "Now your card. Thank you."
        told = [name for name, _ in call.log]
    assert told.index("recording.paused") < told.index("recording.resumed") < told.index("key")
    assert dict(call.log)["recording.paused"]["by"] == "agent"
    assert "webhook.action_failed" not in told


async def test_what_cannot_be_done_is_told_and_the_call_goes_on() -> None:
    async with talking() as call:
        call.answer({"text": "One moment.", "action": "transfer", "digits": "x"})
        assert await call.turn("A person, please.") == "One moment."
        call.answer({"text": "Well.", "action": "dance"})
        assert await call.turn("And now?") == "Well."
        assert call.told("webhook.action_failed") == [
            {"action": "digits", "reason": "only 0-9, *, #, A-D can be pressed"},
            {"action": "transfer", "reason": "the agent has no transferNumber"},
            {"action": "dance", "reason": _UNKNOWN},
        ]


async def test_a_broken_transfer_does_not_keep_the_line_open() -> None:
    async def transfer() -> None:
        raise ConnectionError("10.0.0.7")

    async with talking(transfer=transfer) as call:
        call.answer({"text": "Bye.", "action": "transfer", "hangup": True})
        await call.turn("A person, please.")
        reason = "it could not be done"
        assert call.told("webhook.action_failed") == [{"action": "transfer", "reason": reason}]
        assert call.log[-1] == ("hung up", None)


@pytest.mark.parametrize("fallback", [None, "Say that again, please."])
async def test_a_failure_costs_its_turn(fallback: str | None) -> None:
    async def broken(_received: Received) -> web.StreamResponse:
        return web.Response(status=503, text="the database is at 10.0.0.7")

    async with talking(fallback_message=fallback) as call:
        call.receiver.answers["/"] = broken
        assert await call.turn("Hello?") == (fallback or "")
        (told,) = call.told("webhook.failed")
        assert (told["status"], told["reason"]) == (503, "The endpoint failed")
        assert call.session.agent_state == "listening"
        call.answer({"text": "Here I am."})
        assert await call.turn("Hello?") == "Here I am."
        assert len(call.receiver.received) == 2


async def test_what_was_said_before_a_failure_stays() -> None:
    async with talking(fallback_message="Say that again, please.") as call:
        call.answer({"text": "Well then.", "interim": True}, {"text": "x" * (MAX_TEXT + 1)})
        assert await call.turn("Hello?") == "Well then."
        (told,) = call.told("webhook.failed")
        assert told["reason"] == f"More than {MAX_TEXT} characters to say"


async def test_without_a_webhook_every_turn_fails() -> None:
    async with talking(url=None, fallback_message="Nobody is here.") as call:
        assert await call.turn("Hello?") == "Nobody is here."
        (told,) = call.told("webhook.failed")
        assert (told["status"], told["reason"]) == (None, "No webhook is set")


async def test_an_interruption_aborts_the_request_and_drops_the_rest() -> None:
    gone = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=NDJSON)
        await response.prepare(request)
        try:
            await response.write(b'{"text": "Let me see.", "interim": true, "digits": "1"}\n')
            await asyncio.Event().wait()
        finally:
            gone.set()
        return response

    async with served(slow) as url, talking(url=url) as call:
        speech = call.session.generate_reply(user_input="Hello?")
        changed = asyncio.Event()
        call.session.on("agent_state_changed", lambda _: changed.set())
        async with asyncio.timeout(20):
            while call.session.agent_state != "speaking":
                await changed.wait()
                changed.clear()
            await call.session.interrupt()
            await gone.wait()
        assert speech.interrupted
        assert [name for name, _ in call.log if "webhook" in name] == ["webhook.aborted"]
        assert [data for name, data in call.log if name == "busy"] == [True, False]
        assert ("key", "1") not in call.log

"""A consultation that fails before the answer: its human has left already, or LiveKit fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit import api, rtc

from core.jobs import CallBrief
from core.models import Agent, AgentConfig
from core.transfers import Outcome, TransferResult
from worker.endings import Cause
from worker.line import TransferFailed
from worker.room.consultation import RoomConsultation

pytestmark = pytest.mark.unit

HUMAN = "human"


class Room(rtc.EventEmitter[str]):
    """A room with the human in it, as the worker sees it."""

    name = "room"
    connection_state = rtc.ConnectionState.CONN_CONNECTED

    def __init__(self) -> None:
        super().__init__()
        human = SimpleNamespace(
            identity=HUMAN,
            attributes={"sip.callStatus": "dialing"},
            kind=rtc.ParticipantKind.PARTICIPANT_KIND_SIP,
            track_publications={},
        )
        self.remote_participants = {HUMAN: human}
        self.local_participant = self

    async def publish_track(self, *_: object) -> None:
        raise rtc.participant.PublishTrackError("no")

    def set_track_subscription_permissions(self, **_: object) -> None: ...


class Server:
    """A LiveKit that answers every request with this error code."""

    def __init__(self, code: str) -> None:
        self.room = self
        self.code = code
        self.asked = asyncio.Event()

    async def get_participant(self, _: object) -> None:
        self.asked.set()
        raise api.TwirpError(self.code, "no", status=404)

    async def remove_participant(self, _: object) -> None:
        raise api.TwirpError("not_found", "no", status=404)


class Aside:
    """A voice and an ear that are not used."""

    tts = SimpleNamespace(sample_rate=24_000)

    def __init__(self) -> None:
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


def the_brief() -> CallBrief:
    config = AgentConfig(name="Ann", transfer_number="+15551230077")
    return CallBrief(
        call_id="call_1",
        direction="inbound",
        participant_identity="caller",
        from_number="+15550101",
        to_number="+15550202",
        metadata={},
        max_duration_ms=60_000,
        agent=Agent(id="a", version=1, config=config),
    )


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        ("not_found", "busy", "busy"),
        ("not_found", "rejected", "rejected"),
        ("not_found", "answered", "hung_up"),
        ("unavailable", "busy", "failed"),
    ],
)
async def test_why_there_is_no_transfer(code: str, outcome: Outcome, reason: str) -> None:
    server = Server(code)
    left: list[Cause | str] = []
    consultation = RoomConsultation(
        the_brief(),
        HUMAN,
        recorded=False,
        room=cast(Any, Room()),
        livekit=cast(Any, server),
        aside=cast(Any, Aside()),
        on_connected=lambda: left.append("connected"),
        on_left=left.append,
    )

    async def ring() -> TransferResult:
        await server.asked.wait()
        await asyncio.sleep(0)  # the gateway's verdict comes after the worker's own
        return TransferResult(outcome=outcome)

    try:
        with pytest.raises(TransferFailed) as failed:
            await consultation._call(ring)
    finally:
        consultation.close()
    assert failed.value.reason == reason
    assert left == []


async def test_voice_and_ear_are_closed_when_the_human_was_asked() -> None:
    """The human may be watched for an hour after that."""
    aside = Aside()
    consultation = RoomConsultation(
        the_brief(),
        HUMAN,
        recorded=False,
        room=cast(Any, Room()),
        livekit=cast(Any, Server("not_found")),
        aside=cast(Any, aside),
        on_connected=lambda: None,
        on_left=lambda _: None,
    )

    async def ring() -> TransferResult:
        raise AssertionError("nothing could be published")

    with pytest.raises(TransferFailed):
        await consultation.hold(ring)
    consultation.close()
    assert aside.closed

"""Whose keys the embedded SIP service hands on to its phone."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit import rtc

from sip.bridge.keys import proof, reach
from sip.leg import PhoneLeg
from tests.test_bridge_call import join

pytestmark = [pytest.mark.unit, pytest.mark.attack]

Kind = rtc.ParticipantKind
SIP, AGENT = Kind.PARTICIPANT_KIND_SIP, Kind.PARTICIPANT_KIND_AGENT
BROWSER = Kind.PARTICIPANT_KIND_STANDARD


def sender(kind: Kind.ValueType, *tracks: str) -> rtc.RemoteParticipant:
    known: Any = SimpleNamespace(kind=kind, track_publications=dict.fromkeys(tracks))
    return cast(rtc.RemoteParticipant, known)


@pytest.mark.parametrize(
    ("kind", "tracks", "subscribed", "reaches"),
    [
        (SIP, ["TR_1"], ["TR_1"], True),
        (SIP, ["TR_1"], [], False),
        (SIP, ["TR_1"], ["TR_2"], False),
        (SIP, ["TR_1", "TR_2"], ["TR_2"], True),
        (SIP, [], [], False),
        (SIP, [], ["TR_1"], False),
        (BROWSER, ["TR_1"], ["TR_1"], True),
        (BROWSER, ["TR_1"], [], False),
        (BROWSER, ["TR_1"], ["TR_2"], False),
        (BROWSER, [], [], True),  # a program that only sends keys
        (AGENT, ["TR_1"], [], True),
        (AGENT, [], [], True),
    ],
)
def test_keys_go_where_the_voice_goes(
    kind: Kind.ValueType, tracks: list[str], subscribed: list[str], reaches: bool
) -> None:
    assert reach(sender(kind, *tracks), subscribed) is reaches


def test_only_a_phones_frames_prove_that_it_is_heard() -> None:
    """The end of a subscription is told to nobody; a browser may be muted, an agent silent."""
    assert list(proof(sender(SIP, "TR_1"))) == ["TR_1"]
    assert not any(proof(each) for each in (sender(BROWSER, "TR_1"), sender(AGENT, "TR_1"), None))


async def test_keys_of_a_phone_wait_for_a_frame_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    call, room = await join(monkeypatch)
    leg = PhoneLeg(cast(Any, None), cast(Any, None))
    call._leg = leg
    call._tracks = dict.fromkeys(("TR_1", "TR_2", "TR_3"), cast(Any, None))
    sent: asyncio.Queue[str] = asyncio.Queue()
    phone = cast(Any, SimpleNamespace(send_digit=sent.put))
    playing = asyncio.create_task(call._play_digits(phone, leg, ""))
    told = room.handlers["sip_dtmf_received"]
    leg._framed_at = {"TR_1": time.monotonic(), "TR_2": time.monotonic()}
    for digit, track in enumerate(("TR_1", "TR_2", "TR_3"), start=1):
        told(rtc.SipDTMF(code=digit, digit=str(digit), participant=sender(SIP, track)))
    # What was buffered proves nothing, what comes later does, if it is no new subscription.
    later = time.monotonic() + 0.5
    leg._framed_at = {"TR_1": time.monotonic(), "TR_2": later, "TR_3": later}
    async with asyncio.timeout(10):
        assert await sent.get() == "2"
    assert sent.empty() and call._digits.empty()
    playing.cancel()


def test_of_one_who_has_left_none() -> None:
    assert not reach(None, ["TR_1"])


async def test_nothing_is_saved_up_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was pressed in the room while the phone rang is not played when it is picked up."""
    call, room = await join(monkeypatch)
    told = room.handlers["sip_dtmf_received"]
    told(rtc.SipDTMF(code=1, digit="1", participant=sender(AGENT)))
    assert call._digits.empty()
    call._leg = cast(Any, object())
    told(rtc.SipDTMF(code=2, digit="2", participant=sender(SIP, "TR_1")))
    told(rtc.SipDTMF(code=3, digit="3", participant=sender(AGENT)))
    assert call._digits.get_nowait().digit == "3" and call._digits.empty()

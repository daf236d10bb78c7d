"""sip.dtmf: whose keys reach a phone, and whom a phone's keys are sent to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit import rtc

from core.legs import TAKEN, Leg
from sip.dtmf import reach, recipients
from tests.sip.test_room_leg import join

pytestmark = [pytest.mark.unit, pytest.mark.attack]

Kind = rtc.ParticipantKind
SIP, AGENT = Kind.PARTICIPANT_KIND_SIP, Kind.PARTICIPANT_KIND_AGENT
BROWSER = Kind.PARTICIPANT_KIND_STANDARD


def named(identity: str, kind: Kind.ValueType, **attributes: str) -> rtc.RemoteParticipant:
    known: Any = SimpleNamespace(identity=identity, kind=kind, attributes=attributes)
    return cast(rtc.RemoteParticipant, known)


def sender(kind: Kind.ValueType, *tracks: str, **attributes: str) -> rtc.RemoteParticipant:
    known: Any = SimpleNamespace(
        kind=kind, track_publications=dict.fromkeys(tracks), attributes=attributes
    )
    return cast(rtc.RemoteParticipant, known)


@pytest.mark.parametrize(
    ("kind", "tracks", "heard", "reaches"),
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
    kind: Kind.ValueType, tracks: list[str], heard: list[str], reaches: bool
) -> None:
    assert reach(sender(kind, *tracks), heard, {}) is reaches


def test_a_human_who_has_not_taken_the_call_is_apart() -> None:
    """Subscriptions do not count, because LiveKit tells nobody when it ends one."""
    apart = Leg("human", "call_1").attributes
    joined = {**apart, TAKEN: "true"}
    heard = ["TR_1"]
    for kind in (SIP, BROWSER):
        assert not reach(sender(kind, "TR_1"), heard, apart), "theirs are not for the human"
        assert not reach(sender(kind, "TR_1", **apart), heard, {}), "nor the human's for them"
        assert reach(sender(kind, "TR_1"), heard, joined)
        assert reach(sender(kind, "TR_1", **joined), heard, {})
    assert reach(sender(AGENT), [], apart), "an agent says whom it means"
    caller = Leg("caller", "num_1").attributes
    assert reach(sender(SIP, "TR_1", **caller), heard, caller), "the call's own phone is not"


def test_of_one_who_has_left_none() -> None:
    assert not reach(None, ["TR_1"], {})


def test_a_key_is_sent_to_whom_it_is_for() -> None:
    """The mark that a human has taken the call may reach a phone before the key that takes it."""
    apart = Leg("human", "call_1").attributes
    joined = {**apart, TAKEN: "true"}
    caller = Leg("caller", "num_1").attributes
    agent, phone, human = named("agent", AGENT), named("phone", SIP), named("human", SIP, **apart)
    assert recipients(apart, [agent, phone]) == ["agent"]
    assert recipients(apart, [phone]) == [], "nobody, which is not everybody"
    assert recipients(caller, [agent, human]) == ["agent"]
    assert recipients(caller, [human]) == []
    assert recipients(caller, [agent, phone]) is None
    assert recipients(joined, [agent, phone]) is None
    assert recipients(caller, [agent, named("human", SIP, **joined)]) is None
    assert recipients(caller, []) is None


async def test_nothing_is_saved_up_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that were pressed in the room while the phone rang are not played after the answer."""
    leg, room = await join(monkeypatch)
    told = room.handlers["sip_dtmf_received"]
    told(rtc.SipDTMF(code=1, digit="1", participant=sender(AGENT)))
    assert leg.digits.empty()
    leg._audio = cast(Any, object())
    told(rtc.SipDTMF(code=2, digit="2", participant=sender(SIP, "TR_1")))
    told(rtc.SipDTMF(code=3, digit="3", participant=sender(AGENT)))
    assert leg.digits.get_nowait() == "3" and leg.digits.empty()

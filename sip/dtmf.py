"""DTMF routing: a phone gets a participant's keys only if it gets that participant's audio.

A pressed key is sent to everyone in the room (``SipDTMF``), and LiveKit's server cannot restrict
that. It can restrict audio: subscriptions decide who hears whom (worker.room.separation). So a
phone gets the keys of another participant only while it is subscribed to that participant's
audio. LiveKit tells nobody when it ends a subscription. Therefore a transfer's human, who is kept
apart, neither gets the others' keys nor sends them any until the agent has marked the call as
accepted. livekit-sip plays every key that it receives.

Both ends check. The sender does because the mark may overtake the key that it is set for: keys and
attributes reach a participant on different connections.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Final

from livekit import rtc

from core.legs import TAKEN, Leg

CODES: Final = {digit: code for code, digit in enumerate("0123456789*#ABCD")}
"""The event code of each key (RFC 4733 §3.2)."""


def reach(
    sender: rtc.RemoteParticipant | None, heard: Container[str], own: Mapping[str, str]
) -> bool:
    """Return True if keys of ``sender`` are for a phone subscribed to the tracks ``heard``.

    ``own``: the attributes of that phone. ``sender`` is None if it has left the room.

    An agent addresses its keys itself (core.rtc_sdk.publish_dtmf), and may send them before the
    phone has subscribed to its voice. A program that publishes no audio cannot be kept apart from
    anyone; a phone always publishes audio.
    """
    if sender is None:
        return False
    if sender.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
        return True
    if _apart(sender.attributes) or _apart(own):
        return False
    if not sender.track_publications:
        return sender.kind != rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    return any(sid in heard for sid in sender.track_publications)


def recipients(own: Mapping[str, str], others: Iterable[rtc.RemoteParticipant]) -> list[str] | None:
    """Return the identities that a phone with the attributes ``own`` sends its keys to.

    None: everybody in the room, those included who join in this moment.
    """
    if _apart(own):
        agent = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        return [other.identity for other in others if other.kind == agent]
    known = list(others)
    addressed = [other.identity for other in known if not _apart(other.attributes)]
    return None if len(addressed) == len(known) else addressed


def _apart(attributes: Mapping[str, str]) -> bool:
    """Return True for a transfer's human who has not accepted the call."""
    leg = Leg.read(attributes)
    return leg is not None and leg.role == "human" and not attributes.get(TAKEN)

"""Tests of gateway.calls.plan: the dial and the record that a plan makes."""

from __future__ import annotations

import pytest

from core.legs import Leg
from core.models import Agent, AgentConfig
from gateway.calls.plan import CallPlan
from gateway.store.database import Principal
from sip.dial import Trunk

pytestmark = pytest.mark.unit

AGENT = Agent(id="greeter", version=1, config=AgentConfig(name="Greeter"))


def test_the_phone_says_whose_leg_it_is_and_the_record_whose_call() -> None:
    plan = CallPlan(
        principal=Principal("acme"),
        room_name="room",
        participant_identity="caller",
        participant_name="Ann",
        from_number="+15105550123",
        to_number="+15551234567",
        trunk=Trunk(address="trunk.example.com"),
        agent=AGENT,
        max_duration_s=60,
    )
    dialled, kept = plan.dial(AGENT), plan.new_call(AGENT)
    assert Leg.read(dialled.to_proto().participant_attributes) == Leg("callee", plan.call_id)
    assert (kept.id, kept.auth_id, kept.max_duration_ms) == (plan.call_id, "acme", 60_000)
    # The agent ends the call at 60 s; the SIP service does only if that failed.
    assert dialled.max_call_duration_s == 70
    assert plan.dial(None).max_call_duration_s == 60

"""Tests of core.legs: the attribute that holds a leg's role and call."""

from __future__ import annotations

from typing import get_args

import pytest

from core.legs import LEG, Leg, Role

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("role", get_args(Role))
def test_what_is_written_is_read(role: Role) -> None:
    leg = Leg(role, "call_0123-4567")
    assert leg.attributes == {"switchroom.leg": f"{role}:call_0123-4567"}
    assert Leg.read({"sip.callStatus": "active", **leg.attributes}) == leg


@pytest.mark.attack
@pytest.mark.parametrize(
    "said",
    ["", "callee", "callee:", "agent:call_1", "callee:a\0b", "callee:a b", "human:call_1\n"]
    + ["callee:" + "x" * 65, "callee:é", " callee:call_1", "callee:call:1"],
)
def test_anything_else_is_no_leg(said: str) -> None:
    assert Leg.read({LEG: said}) is None
    assert Leg.read({}) is None

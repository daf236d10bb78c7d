"""A gateway with Twilio numbers that go by SIP or by streams, and both ways there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from gateway.numbers.provider import ProviderRef
from gateway.numbers.repair import Repairs
from tests.conftest import Answered
from tests.support.number_rig import (
    ACCOUNT,
    API,
    NUMBER,
    PUBLIC_URL,
    TWILIO,
    Rig,
    number_rig,
)

NOTHING = Repairs()
THEIRS = {
    "voice_url": "https://theirs.example.com/voice",
    "voice_method": "GET",
    "voice_fallback_url": "https://theirs.example.com/sorry",
    "status_callback": "https://theirs.example.com/status",
}
STREAMED = {
    "trunk_sid": None,
    "voice_application_sid": "",
    "voice_url": f"{PUBLIC_URL}/v1/sessions/twilio",
    "voice_method": "POST",
    "voice_fallback_url": f"{PUBLIC_URL}/v1/sessions/twilio",
    "status_callback": "",
}
APP = "AP" + "3" * 32
BEFORE = ["urls", "trunk", "application"]
CHANGE = "POST .*/IncomingPhoneNumbers/"
UNASSIGN = "DELETE .*/PhoneNumbers/"
ASSIGN = "POST .*/PhoneNumbers$"
# Each step of a switch, in each direction, that changes something or may be refused.
TO_STREAM = [("stream", step) for step in (CHANGE, UNASSIGN)]
TO_SIP = [
    ("sip", step)
    for step in (
        "CreateSIPInboundTrunk",
        "CreateSIPDispatchRule",
        "GET /v1/Trunks",
        "POST /v1/Trunks$",
        "GET .*/OriginationUrls",
        "POST .*/OriginationUrls",
        ASSIGN,
        CHANGE,
    )
]


@asynccontextmanager
async def switching_rig(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    async with number_rig(folder, public_url=PUBLIC_URL, **settings) as rig:
        # The gateway's own first round is over before there is anything to repair.
        assert await rig.repair.reconcile() == NOTHING
        await rig.credential(TWILIO)
        yield rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with switching_rig(tmp_path) as rig:
        yield rig


def given(rig: Rig, before: str = "urls", phone_number: str = NUMBER) -> dict[str, Any]:
    """Add a number to the account that is routed to its tenant's own system."""
    columns: dict[str, Any] = dict(THEIRS)
    if before == "trunk":
        columns["trunk_sid"] = rig.twilio.make_trunk(ACCOUNT, "theirs")["sid"]
    elif before == "application":
        columns["voice_application_sid"] = APP
    return rig.twilio.give(ACCOUNT, phone_number, **columns)


async def attached(rig: Rig, via: str, **fields: Any) -> Any:
    return await rig.attached("twilio", credentialsRef="main", via=via, **fields)


async def patch(rig: Rig, number_id: str, **changes: Any) -> Answered:
    options = {"headers": changes.pop("headers")} if "headers" in changes else {}
    return await rig.api.request("PATCH", f"{API}/{number_id}", json=changes, **options)


async def detach(rig: Rig, number_id: str) -> Answered:
    return await rig.api.request("DELETE", f"{API}/{number_id}")


async def shown(rig: Rig, number_id: str) -> Any:
    return (await rig.api.get(f"{API}/{number_id}")).body["data"]


def streams(row: dict[str, Any]) -> bool:
    return {name: row[name] for name in STREAMED} == STREAMED


def uses_sip(rig: Rig, row: dict[str, Any]) -> bool:
    """Return True if the number is assigned to our trunk, and has its own URLs beneath."""
    own = {name: row[name] for name in THEIRS} == THEIRS
    trunk = rig.twilio.trunks.get(row["trunk_sid"] or "", {})
    return own and trunk.get("friendly_name") == "Switchroom (switchroom)"


class Halfway:
    """Holds switches up after their last change at Twilio, until the block ends."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self._at, self._on = asyncio.Event(), asyncio.Event()
        route = rig.provisioner.provider.route

        async def held_up(*args: Any) -> ProviderRef:
            ref = await route(*args)
            self._at.set()
            await self._on.wait()
            return ref

        monkeypatch.setattr(rig.provisioner.provider, "route", held_up)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._on.set()

    async def reached(self) -> None:
        await asyncio.wait_for(self._at.wait(), 5)


def other(via: str) -> str:
    return "sip" if via == "stream" else "stream"

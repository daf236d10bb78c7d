"""Callers with text that no record can hold: the call is taken or turned away, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.models import new_id
from gateway.calls.inbound import call_id_of
from gateway.keys import TIMELINE
from gateway.store.database import Scope
from tests.gateway.api.test_livekit_webhook import deliver
from tests.gateway.calls.test_inbound import CALLER, Caller, number, sent_away
from tests.gateway.calls.test_reconciler import old_call, outcome, round_of
from tests.sip.test_far_end import NO_TEXT
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.inprocess import Running
from tests.support.livekit_stub import LiveKitStub, running_with

pytestmark = [pytest.mark.store, pytest.mark.attack]

# Text that JSON and protobuf can carry.
SAID = [text for text in NO_TEXT if "\ud800" not in text]


class Contract:
    @pytest.fixture
    def livekit(self) -> LiveKitStub:
        return LiveKitStub()

    @pytest.fixture
    async def gateway(
        self, url: str, tmp_path: Path, livekit: LiveKitStub
    ) -> AsyncIterator[Running]:
        async with running_with(livekit, tmp_path, database_url=url) as gateway:
            await gateway.worker(capacity=100)
            yield gateway

    async def test_a_number_that_is_no_text_is_unknown(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        """livekit-sip passes the caller's From header on as it stands."""
        attached = await number(gateway)
        for said in SAID:
            caller = Caller(attached.id)
            for name in ("sip.phoneNumber", "sip.callID", "sip.callIDFull"):
                caller.participant.attributes[name] = said
            livekit.enter(caller.room, caller.participant)
            assert await deliver(gateway, caller.webhook("participant_joined")) == 200
            status, body = await caller.asked_by_worker(gateway)
            assert (status, body["brief"].get("fromNumber")) == (200, None)
            assert await deliver(gateway, caller.left("hangup")) == 200
            call = await caller.record(gateway)
            assert (call.from_number, call.to_number) == (None, "+15105550188")

    @pytest.mark.parametrize("place", ["identity", "room"])
    async def test_who_cannot_be_named_is_turned_away(
        self, gateway: Running, livekit: LiveKitStub, place: str
    ) -> None:
        attached = await number(gateway)
        for said in SAID[:-1]:  # the last one is only too long for a number
            caller = Caller(attached.id)
            if place == "identity":
                caller.participant.identity = f"sip_{said}"
            else:
                caller.room = f"in_{said}_{new_id('r')}"
                caller.call_id = call_id_of(caller.room)
            livekit.enter(caller.room, caller.participant)
            assert await deliver(gateway, caller.webhook("participant_joined")) == 200
            await sent_away(livekit, caller)
            livekit.enter(caller.room, caller.participant)
            # A room name with a NUL makes the request invalid (400).
            assert (await caller.asked_by_worker(gateway))[0] in {400, 410}
            assert await deliver(gateway, caller.left("ringing")) == 200
            assert await gateway.store.call(Scope(None), caller.call_id) is None

    async def test_no_caller_stops_the_reconciler(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        attached = await number(gateway)
        hostile, honest = [], Caller(attached.id)
        for index, said in enumerate(SAID[:-1]):
            caller = Caller(attached.id)
            if index % 2:
                caller.participant.identity = f"sip_{said}"
            caller.participant.attributes["sip.phoneNumber"] = said
            hostile.append(caller)
        everyone = [*hostile, honest]
        for caller in everyone:
            livekit.enter(caller.room, caller.participant)
            livekit.metadata[caller.room] = caller.participant.metadata
        left_behind = await old_call(gateway)
        assert await round_of(gateway) == 1
        assert await outcome(gateway, left_behind) == ("failed", "dial_failed")
        assert (await honest.record(gateway)).from_number == CALLER
        for index, caller in enumerate(hostile):
            call = await gateway.store.call(Scope(None), caller.call_id)
            assert (call is None) == bool(index % 2)
            assert call is None or call.from_number is None

    async def test_one_bad_call_does_not_keep_the_others_open(
        self, gateway: Running, livekit: LiveKitStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = [await old_call(gateway) for _ in range(3)]
        timeline = gateway.app[TIMELINE]
        told = timeline.append

        async def failing(call_id: str, *rest: Any) -> Any:
            if call_id == calls[1].id:
                raise ValueError("what nobody thought of")
            return await told(call_id, *rest)

        monkeypatch.setattr(timeline, "append", failing)
        assert await round_of(gateway) == 2
        ends = [(await outcome(gateway, call))[0] for call in calls]
        assert ends == ["failed", "queued", "failed"]


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass

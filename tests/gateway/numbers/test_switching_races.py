"""Twilio numbers that are switched by several at once, and that stay as they were switched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import Conflict
from core.models import PhoneNumber
from gateway.keys import NUMBERS
from gateway.numbers.provider import ProviderRef
from gateway.numbers.repair import Repairs
from gateway.numbers.switching import Switching
from gateway.store.database import Scope
from tests.support.databases import OnPostgres
from tests.support.number_rig import (
    ACCOUNT,
    Rig,
    code,
)
from tests.support.switching_rig import (
    APP,
    NOTHING,
    Halfway,
    attached,
    detach,
    given,
    other,
    patch,
    shown,
    streams,
    switching_rig,
    uses_sip,
)
from tests.support.switching_rig import rig as rig

pytestmark = pytest.mark.store


class TestAtOnce:
    """A switch and other requests for the same number."""

    async def test_many_switches(self, rig: Rig) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        answers = await asyncio.gather(*(patch(rig, view["id"], via="stream") for _ in range(5)))
        statuses = [answer.status for answer in answers]
        assert 200 in statuses
        assert {code(answer) for answer in answers if answer.status != 200} <= {"NUMBER_BUSY"}
        assert streams(row)
        assert await rig.repair.reconcile() == NOTHING
        answers = await asyncio.gather(
            *(patch(rig, view["id"], via=via) for via in ["sip", "stream"] * 3)
        )
        assert {answer.status for answer in answers} <= {200, 409}
        via = (await shown(rig, view["id"]))["via"]
        assert streams(row) if via == "stream" else uses_sip(rig, row)
        assert await rig.repair.reconcile() == NOTHING

    async def test_a_switch_goes_on_without_its_client(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via="stream"))
            await halfway.reached()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            for busy in (
                await detach(rig, view["id"]),
                await patch(rig, view["id"], via="stream"),
                await patch(rig, view["id"], via="sip"),
            ):
                assert (busy.status, code(busy)) == (409, "NUMBER_BUSY")
            # Other changes do not wait, and the repair leaves the number alone.
            assert (await patch(rig, view["id"], agentId="greeter")).status == 200
            assert await rig.repair.reconcile() == NOTHING
        await rig.provisioner.drain(5)
        wanted = {**view, "via": "stream", "agentId": "greeter"}
        assert await shown(rig, view["id"]) == wanted
        assert streams(row)

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_another_gateway_is_at_it(self, rig: Rig, via: str) -> None:
        row = given(rig)
        view = await attached(rig, other(via))
        former = dict(row)
        (stored,) = await rig.rows()
        await self.hold(rig, stored, "another:8080", time.time() + 60, via)
        trunks = dict(rig.sip.registry.inbound)
        for busy in (await detach(rig, view["id"]), await patch(rig, view["id"], via=via)):
            assert (busy.status, code(busy)) == (409, "NUMBER_BUSY")
        if via == "sip":
            # The other gateway has made the trunk and not noted it yet.
            await rig.provisioner.objects.put_trunk(stored, ())
            trunks = dict(rig.sip.registry.inbound)
        assert await rig.repair.reconcile() == NOTHING
        assert (row, dict(rig.sip.registry.inbound)) == (former, trunks)
        # It died: its time is over.
        await self.hold(rig, stored, "another:8080", time.time() - 1, via)
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert (await shown(rig, view["id"]), row) == (view, former)
        assert [len(names) for names in rig.sip.names] == ([1, 1] if via == "stream" else [0, 0])

    async def test_another_gateway_took_it_over(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A gateway that stood still for minutes changes nothing at Twilio any more."""
        row = given(rig)
        view = await attached(rig, "sip")
        former = dict(row)
        (stored,) = await rig.rows()
        route = rig.provisioner.provider.route

        async def late(*args: Any) -> ProviderRef:
            monkeypatch.undo()
            await self.hold(rig, stored, "another:8080", time.time() + 60, "stream")
            return await route(*args)

        monkeypatch.setattr(rig.provisioner.provider, "route", late)
        answer = await patch(rig, view["id"], via="stream")
        assert (answer.status, code(answer)) == (409, "NUMBER_BUSY")
        (stored,) = await rig.rows()
        assert (row, ProviderRef.of(stored).held_by) == (former, "another:8080")

    async def test_a_switch_ends_while_another_request_is_checked(self, rig: Rig) -> None:
        """A request that read the row before the switch changes nothing by what it read."""
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "sip")
        (before,) = await rig.rows()
        account, owned = await rig.provisioner.provider.find(before)
        assert (await patch(rig, view["id"], via="stream")).status == 200

        async def keep(values: dict[str, Any]) -> PhoneNumber:
            raise AssertionError("it was switched")

        with pytest.raises(Conflict, match="switched or detached"):
            await Switching(rig.provisioner).switch(before, "stream", account, owned, keep)
        with pytest.raises(Conflict, match="switched or detached"):
            await rig.provisioner.detach(before, release=False)
        assert streams(row)
        assert (await shown(rig, view["id"]))["status"] == "active"
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    async def test_a_switch_begins_while_drift_is_repaired(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The repair leaves the number to the gateway that has begun to switch it."""
        given(rig)
        await attached(rig, "sip")
        (stored,) = await rig.rows()
        rig.sip.registry.rules.clear()
        get = rig.provisioner.numbers.get

        async def switched(*args: Any) -> PhoneNumber | None:
            await self.hold(rig, stored, "another:8080", time.time() + 60, "stream")
            return await get(*args)

        monkeypatch.setattr(rig.provisioner.numbers, "get", switched)
        assert await rig.repair.reconcile() == NOTHING
        assert rig.sip.registry.rules == {}

    async def hold(self, rig: Rig, number: PhoneNumber, by: str, until: float, via: Any) -> None:
        held = ProviderRef.of(number).model_copy(
            update={"held_by": by, "held_until": until, "switching": via}
        )
        moved = await rig.own.app[NUMBERS].move(
            Scope(None), number.id, {"active"}, {"provider_ref": held.wire()}
        )
        assert moved is not None


class TestAtOnceOnPostgres(OnPostgres, TestAtOnce):
    @pytest.fixture
    async def rig(self, tmp_path: Path, url: str) -> AsyncIterator[Rig]:
        async with switching_rig(tmp_path, database_url=url) as rig:
            yield rig


class TestDrift:
    @pytest.mark.parametrize(
        "drift",
        [
            {"voice_url": "https://by-hand.example.com"},
            {"voice_url": ""},
            {"voice_method": "GET"},
            {"voice_application_sid": APP},
            {"trunk_sid": "theirs"},
        ],
    )
    async def test_changed_at_twilio(self, rig: Rig, drift: dict[str, str]) -> None:
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "stream")
        theirs = rig.twilio.make_trunk(ACCOUNT, "theirs")["sid"]
        row.update(drift)
        if "trunk_sid" in drift:
            row["trunk_sid"] = theirs
        assert await rig.repair.reconcile() == Repairs(restored=1)
        assert streams(row)
        assert await rig.repair.reconcile() == NOTHING
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    async def test_an_account_is_asked_once(self, rig: Rig) -> None:
        numbers = [f"+1415555020{turn}" for turn in range(4)]
        rows = [given(rig, phone_number=number) for number in numbers]
        for number in numbers[:3]:
            await attached(rig, "stream", phoneNumber=number)
        await attached(rig, "sip", phoneNumber=numbers[3])
        rows[0]["voice_url"] = rows[3]["voice_url"] = "https://by-hand.example.com"
        rig.twilio.requests.clear()
        assert await rig.repair.reconcile() == Repairs(restored=1)
        assert [streams(row) for row in rows] == [True, True, True, False]
        rig.twilio.requests.clear()
        assert await rig.repair.reconcile() == NOTHING
        assert len(rig.twilio.requests) == 1

    async def test_numbers_of_sip_ask_nobody(self, rig: Rig) -> None:
        given(rig)
        await attached(rig, "sip")
        rig.twilio.requests.clear()
        assert await rig.repair.reconcile() == NOTHING
        assert rig.twilio.requests == []

    async def test_another_public_url(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """After PUBLIC_URL was changed, Twilio is told the new one, and forgets it at the end."""
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "stream")
        provider = rig.provisioner.provider
        moved = provider._settings.model_copy(update={"public_url": "https://new.example.com"})
        monkeypatch.setattr(provider, "_settings", moved)
        assert await rig.repair.reconcile() == Repairs(restored=1)
        assert row["voice_url"] == "https://new.example.com/v1/sessions/twilio"
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    @pytest.mark.parametrize("first", ["stream", "sip"])
    async def test_routed_elsewhere_before_it_is_detached(self, rig: Rig, first: str) -> None:
        row = given(rig, "trunk")
        view = await attached(rig, first)
        assert (await patch(rig, view["id"], via="stream")).status == 200
        row["voice_url"] = "https://by-hand.example.com"
        elsewhere = dict(row)
        assert (await detach(rig, view["id"])).status == 200
        assert row == elsewhere

    async def test_objects_of_a_streamed_number_are_removed(self, rig: Rig) -> None:
        given(rig)
        view = await attached(rig, "sip")
        rig.sip.faults.fail("DeleteSIP")
        assert (await patch(rig, view["id"], via="stream")).status == 200
        assert rig.sip.names == [[view["id"]]] * 2
        rig.sip.faults.clear()
        assert await rig.repair.reconcile() == Repairs(removed=2)
        assert rig.sip.names == [[], []]

    async def test_twilio_is_away(self, rig: Rig) -> None:
        """Numbers of others are repaired all the same."""
        given(rig)
        await attached(rig, "stream")
        await rig.attached(phoneNumber="+14155550124")
        rig.sip.registry.inbound.clear()
        rig.twilio.fail(".", status=503)
        assert await rig.repair.reconcile() == Repairs(restored=1, failed=1)

    async def test_one_that_was_sold_does_not_keep_the_others(self, rig: Rig) -> None:
        rows = [given(rig, phone_number=f"+1415555020{turn}") for turn in range(2)]
        for row in rows:
            await attached(rig, "stream", phoneNumber=row["phone_number"])
            row["voice_url"] = ""
        del rig.twilio.numbers[rows[0]["sid"]]
        assert await rig.repair.reconcile() == Repairs(restored=1, failed=1)
        assert streams(rows[1])

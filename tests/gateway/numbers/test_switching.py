"""Twilio numbers between SIP and streams: switched whole or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from core.models import PhoneNumber
from gateway.keys import NUMBERS
from gateway.numbers.repair import Repairs
from gateway.numbers.switching import Switching
from gateway.store.database import Scope
from tests.conftest import RIVAL
from tests.support.inprocess import NOWHERE
from tests.support.number_rig import (
    ACCOUNT,
    API,
    PUBLIC_URL,
    TWILIO,
    Rig,
    code,
    number_rig,
)
from tests.support.switching_rig import (
    ASSIGN,
    BEFORE,
    CHANGE,
    NOTHING,
    THEIRS,
    TO_SIP,
    TO_STREAM,
    UNASSIGN,
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


class TestAttach:
    @pytest.mark.parametrize("before", BEFORE)
    async def test_streamed_and_back(self, rig: Rig, before: str) -> None:
        row = given(rig, before)
        former = dict(row)
        view = await attached(rig, "stream", agentId="greeter")
        assert (view["via"], view["status"], view["inboundCallsEnabled"]) == (
            "stream",
            "active",
            True,
        )
        assert streams(row)
        assert rig.sip.names == [[], []]
        assert await rig.repair.reconcile() == NOTHING
        assert (await detach(rig, view["id"])).status == 200
        assert (row, await rig.rows()) == (former, [])

    async def test_needs_no_address_for_sip(self, tmp_path: Path) -> None:
        async with number_rig(tmp_path, public_url=PUBLIC_URL, sip_public_address=None) as rig:
            await rig.credential(TWILIO)
            row = given(rig)
            view = await attached(rig, "stream")
            assert streams(row)
            refused = await patch(rig, view["id"], via="sip")
            assert (refused.status, code(refused)) == (409, "SIP_ADDRESS_NOT_CONFIGURED")
            assert streams(row)

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ({}, 409),
            ({"gateway_url": "http://127.0.0.1:8080"}, 409),
            ({"public_url": "http://voice.example.com"}, 409),
            ({"public_url": "http://127.0.0.1:8080"}, 201),
            ({"gateway_url": PUBLIC_URL}, 201),
        ],
    )
    async def test_needs_an_address_that_twilio_takes(
        self, tmp_path: Path, values: dict[str, str], status: int
    ) -> None:
        async with number_rig(tmp_path, **values) as rig:
            await rig.credential(TWILIO)
            row = given(rig)
            former = dict(row)
            answer = await rig.attach("twilio", credentialsRef="main", via="stream")
            assert answer.status == status
            if status == 409:
                assert (code(answer), row, await rig.rows()) == (
                    "PUBLIC_URL_NOT_CONFIGURED",
                    former,
                    [],
                )

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", [CHANGE, UNASSIGN])
    async def test_undone(self, rig: Rig, step: str, late: bool) -> None:
        row = given(rig, "trunk")
        former = dict(row)
        fault = rig.twilio.fail(step, status=400, code=21402, late=late, times=1)
        answer = await rig.attach("twilio", credentialsRef="main", via="stream")
        assert fault.hit.is_set()
        assert (answer.status, code(answer)) == (422, "PROVIDER_REFUSED")
        assert (row, await rig.rows()) == (former, [])
        assert await rig.repair.reconcile() == NOTHING

    @pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
    async def test_needs_no_sip_service(self, tmp_path: Path, refused: bool) -> None:
        async with number_rig(tmp_path, public_url=PUBLIC_URL, livekit_sip_url=NOWHERE) as rig:
            await rig.credential(TWILIO)
            row = given(rig, "trunk")
            former = dict(row)
            if refused:
                rig.twilio.fail(UNASSIGN, status=400, code=21402, times=1)
                answer = await rig.attach("twilio", credentialsRef="main", via="stream")
                assert (answer.status, code(answer)) == (422, "PROVIDER_REFUSED")
            else:
                view = await attached(rig, "stream")
                assert streams(row)
                row["voice_url"] = THEIRS["voice_url"]
                assert (await rig.repair.reconcile()).restored == 1
                assert streams(row)
                assert (await patch(rig, view["id"], direction="inbound")).status == 200
                assert (await detach(rig, view["id"])).status == 200
            assert (row, await rig.rows()) == (former, [])

    async def test_a_switch_to_it_needs_none(self, tmp_path: Path) -> None:
        """Its trunk and rule are removed when the service is there again."""
        async with switching_rig(tmp_path) as rig:
            row = given(rig)
            view = await attached(rig, "sip")
            rig.sip.faults.fail("POST .*", status=503)
            assert (await patch(rig, view["id"], via="stream")).status == 200
            assert streams(row)
            assert rig.sip.names == [[view["id"]]] * 2
            rig.sip.faults.clear()
            assert (await rig.repair.reconcile()).removed == 2
            assert rig.sip.names == [[], []]

    async def test_bought(self, rig: Rig) -> None:
        rig.twilio.offer("+14155550100")
        answer = await rig.api.post(f"{API}/buy", json={"credentialsRef": "main", "via": "stream"})
        assert (answer.status, answer.body["data"]["via"]) == (201, "stream")
        (row,) = rig.twilio.numbers.values()
        assert streams(row)
        assert rig.sip.names == [[], []]

    async def test_is_twilios_alone(self, rig: Rig) -> None:
        view = await rig.attached()
        for answer in (
            await rig.attach(phoneNumber="+14155550124", via="stream"),
            await patch(rig, view["id"], via="stream", direction="inbound"),
        ):
            assert (answer.status, code(answer)) == (422, "VALIDATION_ERROR")
            assert [each["field"] for each in answer.body["meta"]["details"]] == ["via"]
        assert await shown(rig, view["id"]) == view


class TestSwitch:
    @pytest.mark.parametrize("before", BEFORE)
    async def test_there_and_back(self, rig: Rig, before: str) -> None:
        row = given(rig, before)
        former = dict(row)
        view = await attached(rig, "sip")
        assert view["via"] == "sip"
        for _ in range(2):
            changed = await patch(
                rig, view["id"], via="stream", agentId="greeter", direction="inbound"
            )
            wanted = {**view, "via": "stream", "agentId": "greeter", "direction": "inbound"}
            assert (changed.status, changed.body["data"]) == (200, wanted)
            assert await shown(rig, view["id"]) == wanted
            assert streams(row)
            assert rig.sip.names == [[], []]
            assert await rig.repair.reconcile() == NOTHING
            back = await patch(rig, view["id"], via="sip")
            assert back.body["data"] == {**wanted, "via": "sip"}
            assert uses_sip(rig, row)
            assert rig.sip.names == [[view["id"]]] * 2
            assert await rig.repair.reconcile() == NOTHING
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    @pytest.mark.parametrize("before", BEFORE)
    async def test_detached_after_it(self, rig: Rig, before: str) -> None:
        row = given(rig, before)
        former = dict(row)
        view = await attached(rig, "sip")
        assert (await patch(rig, view["id"], via="stream")).status == 200
        assert (await detach(rig, view["id"])).status == 200
        assert (row, rig.sip.names) == (former, [[], []])

    async def test_to_the_same_asks_nobody(self, rig: Rig) -> None:
        given(rig)
        view = await attached(rig, "stream")
        rig.twilio.requests.clear()
        assert (await patch(rig, view["id"], via="stream")).body["data"] == view
        assert rig.twilio.requests == []

    @pytest.mark.attack
    async def test_of_another_tenant(self, rig: Rig) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        former = dict(row)
        answer = await patch(rig, view["id"], via="stream", headers=RIVAL)
        assert (answer.status, code(answer)) == (404, "NUMBER_NOT_FOUND")
        assert (row, await shown(rig, view["id"])) == (former, view)

    async def test_urls_that_were_changed_beneath_the_trunk_are_kept(self, rig: Rig) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        for turn in range(2):
            new = f"https://new.example.com/{turn}"
            row.update(voice_url=new, status_callback="")
            for via in ("stream", "sip"):
                assert (await patch(rig, view["id"], via=via)).status == 200
            assert (row["voice_url"], row["status_callback"]) == (new, "")
            assert row["voice_method"] == "GET"

    async def test_a_number_attached_before_its_urls_were_kept(self, rig: Rig) -> None:
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "sip")
        (stored,) = await rig.rows()
        known = ("trunkSid", "voiceApplicationSid")
        before = {name: stored.provider_ref["before"][name] for name in known}
        ref = {**stored.provider_ref, "before": before}
        await rig.own.app[NUMBERS].move(Scope(None), stored.id, {"active"}, {"provider_ref": ref})
        assert (await patch(rig, view["id"], via="stream")).status == 200
        assert streams(row)
        assert (await detach(rig, view["id"])).status == 200
        assert row == former


class TestUndone:
    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("via", "step"), [*TO_STREAM, *TO_SIP])
    async def test_at_once(self, rig: Rig, via: str, step: str, late: bool) -> None:
        row, view, former = await self.start(rig, other(via))
        fault = self.fail(rig, step, late=late, times=1)
        answer = await patch(rig, view["id"], via=via, agentId="greeter", direction="outbound")
        assert fault.hit.is_set()
        wanted = (500, "LIVEKIT_ERROR") if "SIP" in step else (422, "PROVIDER_REFUSED")
        assert (answer.status, code(answer)) == wanted
        await self.is_undone(rig, row, view, former)
        assert (await patch(rig, view["id"], via=via)).status == 200
        assert streams(row) if via == "stream" else uses_sip(rig, row)

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("via", "step"), [*TO_STREAM, *TO_SIP])
    async def test_after_a_kill(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str, step: str, late: bool
    ) -> None:
        """The gateway stops at a step and undoes nothing; the repair of the next one does."""
        row, view, former = await self.start(rig, other(via))
        self.fail(rig, step, late=late, times=1)
        await self.stop_halfway(rig, monkeypatch, view, via)
        (stored,) = await rig.rows()
        assert (stored.status, stored.via) == ("active", other(via))
        assert await rig.repair.reconcile() == Repairs(undone=1)
        await self.is_undone(rig, row, view, former)

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("via", "step"), [*TO_STREAM, *TO_SIP])
    async def test_detached_after_a_kill(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str, step: str, late: bool
    ) -> None:
        row = given(rig, "trunk")
        origin = dict(row)
        _, view, _ = await self.start(rig, other(via), row)
        self.fail(rig, step, late=late, times=1)
        await self.stop_halfway(rig, monkeypatch, view, via)
        assert (await detach(rig, view["id"])).status == 200
        assert (row, rig.sip.names, await rig.rows()) == (origin, [[], []], [])

    @pytest.mark.parametrize("via", ["stream", "sip"])
    @pytest.mark.parametrize("step", [CHANGE, UNASSIGN, ASSIGN])
    async def test_switched_on_after_a_kill(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str, via: str
    ) -> None:
        """A half switch can be completed or taken back by hand."""
        row, view, _ = await self.start(rig, "stream" if step == ASSIGN else "sip")
        self.fail(rig, step, late=True, times=1)
        await self.stop_halfway(rig, monkeypatch, view, other(view["via"]))
        assert (await patch(rig, view["id"], via=via)).body["data"] == {**view, "via": via}
        assert streams(row) if via == "stream" else uses_sip(rig, row)
        assert await rig.repair.reconcile() == NOTHING

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_twilio_goes_away_halfway(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str
    ) -> None:
        row, view, former = await self.start(rig, other(via))
        agent = await rig.agent()
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via=via, agentId=agent))
            await halfway.reached()
            assert (await rig.api.request("DELETE", f"/v1/agents/{agent}")).status == 200
            rig.twilio.fail(".", status=503)
        assert (await asking).status == 404
        assert await shown(rig, view["id"]) == view
        assert await rig.repair.reconcile() == Repairs(failed=1)
        rig.twilio.faults.clear()
        assert await rig.repair.reconcile() == Repairs(undone=1)
        await self.is_undone(rig, row, view, former)

    async def test_the_credential_is_refused(self, rig: Rig) -> None:
        row, view, former = await self.start(rig, "sip")
        rig.twilio.accounts[ACCOUNT] = "another-token"
        answer = await patch(rig, view["id"], via="stream")
        assert (answer.status, code(answer)) == (422, "CREDENTIAL_REFUSED")
        await self.is_undone(rig, row, view, former)

    async def test_the_number_was_sold(self, rig: Rig) -> None:
        row, view, former = await self.start(rig, "sip")
        del rig.twilio.numbers[row["sid"]]
        answer = await patch(rig, view["id"], via="stream")
        assert (answer.status, code(answer)) == (422, "NUMBER_NOT_IN_ACCOUNT")
        await self.is_undone(rig, row, view, former)

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_the_agent_is_deleted_meanwhile(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str
    ) -> None:
        row, view, former = await self.start(rig, other(via))
        agent = await rig.agent()
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via=via, agentId=agent))
            await halfway.reached()
            assert (await rig.api.request("DELETE", f"/v1/agents/{agent}")).status == 200
        answer = await asking
        assert (answer.status, code(answer)) == (404, "AGENT_NOT_FOUND")
        await self.is_undone(rig, row, view, former)

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_the_gateway_is_told_to_stop(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str
    ) -> None:
        row, view, former = await self.start(rig, other(via))
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via=via))
            await halfway.reached()
            monkeypatch.undo()
            await rig.provisioner.drain(0)
        answer = await asking
        assert (answer.status, code(answer)) == (503, "UNAVAILABLE")
        await self.is_undone(rig, row, view, former)

    async def test_the_databases_confirmation_is_lost(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the database has kept is not undone at Twilio."""
        row, view, _ = await self.start(rig, "sip")
        move = rig.provisioner.numbers.move

        async def lost(*args: Any, **options: Any) -> PhoneNumber | None:
            done = await move(*args, **options)
            if "via" in args[3]:
                raise TimeoutError
            return done

        monkeypatch.setattr(rig.provisioner.numbers, "move", lost)
        assert (await patch(rig, view["id"], via="stream")).status == 503
        monkeypatch.undo()
        assert (await shown(rig, view["id"]))["via"] == "stream"
        assert streams(row)

    # --- steps

    async def start(
        self, rig: Rig, via: str, row: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        row = given(rig, "application") if row is None else row
        view = await attached(rig, via)
        return row, view, dict(row)

    def fail(self, rig: Rig, step: str, **how: Any) -> Any:
        if "SIP" in step:
            return rig.sip.faults.fail(step, **how)
        return rig.twilio.fail(step, status=400, code=21402, **how)

    async def stop_halfway(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, view: Any, via: str
    ) -> None:
        async def nothing(self: Switching, held: PhoneNumber, error: BaseException) -> None:
            pass

        with monkeypatch.context() as patched:
            patched.setattr(Switching, "_switch_back", nothing)
            assert (await patch(rig, view["id"], via=via)).status in (422, 500)

    async def is_undone(
        self, rig: Rig, row: dict[str, Any], view: Any, former: dict[str, Any]
    ) -> None:
        assert await shown(rig, view["id"]) == view
        assert row == former
        assert rig.sip.names == ([[view["id"]]] * 2 if view["via"] == "sip" else [[], []])
        assert await rig.repair.reconcile() == NOTHING

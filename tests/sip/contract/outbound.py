"""Outbound calls: what is known before the answer, refusals, trunks, and how calls end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from livekit import api, rtc
from livekit.protocol import sip as pb

from dev.phone import Phone, Reject, RingOut
from dev.sip.digest import Credentials
from dev.stack.sip_backends import WAIT
from dev.standins.trunk import Trunk
from tests.sip.contract.rig import (
    CALLED,
    CALLER,
    IDENTITY,
    Rig,
    by_us,
    dial_request,
    new_room,
    seconds,
)


class OutboundContract:
    """Subclasses provide the fixture ``rig``."""

    # --- outbound: before and at the answer

    async def test_the_participant_is_there_with_its_ids_before_the_answer(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        waiting = asyncio.create_task(rig.dial(wait_until_answered=True))
        early = await rig.visible()
        call = await rig.phone.next_call(WAIT)
        assert not waiting.done()
        assert early.sid.startswith("PA_")
        assert early.attributes["sip.callID"].startswith("SCL_")
        await call.answer()
        info = await asyncio.wait_for(waiting, WAIT)
        assert info.participant_id == early.sid
        assert info.sip_call_id == early.attributes["sip.callID"]
        assert (info.participant_identity, info.room_name) == (IDENTITY, rig.room)

    async def test_without_waiting_it_returns_while_the_phone_rings(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        info = await rig.dial()
        participant = await rig.participant()
        assert participant.sid == info.participant_id
        assert participant.kind == api.ParticipantInfo.Kind.SIP
        call = await rig.phone.next_call(WAIT)
        assert call.ending is None and not call.was_up

    async def test_attributes(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect(
                participant_name="Ann",
                participant_metadata="meta",
                participant_attributes={"mine": "yes"},
            )
            await watcher.until(lambda: watcher.attributes.get("sip.callStatus") == "active")
            await watcher.until(lambda: "sip.callTag" in watcher.attributes)
            attributes = watcher.attributes
            participant = await rig.participant()
        assert (participant.name, participant.metadata) == ("Ann", "meta")
        assert attributes["mine"] == "yes"
        assert attributes["sip.callID"] == info.sip_call_id
        assert attributes["sip.phoneNumber"] == CALLED
        assert attributes["sip.trunkPhoneNumber"] == CALLER
        assert attributes["sip.hostname"] == rig.phone.address
        assert attributes["sip.callIDFull"] == call.call_id
        assert attributes["sip.callTag"]
        assert watcher.statuses[-1] == "active"

    async def test_numbers_can_be_hidden(self, rig: Rig) -> None:
        await rig.connect(hide_phone_number=True)
        attributes = (await rig.participant()).attributes
        assert attributes["sip.callID"]
        assert not {"sip.phoneNumber", "sip.trunkPhoneNumber", "sip.hostname"} & set(attributes)

    async def test_it_says_that_the_phone_rings(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        async with rig.watch() as watcher:
            await rig.dial()
            await watcher.until(lambda: "ringing" in watcher.statuses)

    # --- outbound: verdicts

    @pytest.mark.parametrize(
        ("status", "code", "http", "reason"),
        [
            (486, "resource_exhausted", 429, "USER_REJECTED"),
            (603, "permission_denied", 403, "USER_REJECTED"),
            (503, "failed_precondition", 412, "CLIENT_INITIATED"),
            (480, "resource_exhausted", 429, "USER_UNAVAILABLE"),
            (404, "not_found", 404, "USER_UNAVAILABLE"),
            (488, "invalid_argument", 400, "USER_REJECTED"),
            (484, "invalid_argument", 400, "USER_REJECTED"),
            (403, "permission_denied", 403, "USER_REJECTED"),
            (600, "resource_exhausted", 429, "USER_REJECTED"),
        ],
    )
    async def test_a_refusal(
        self, rig: Rig, status: int, code: str, http: int, reason: str
    ) -> None:
        rig.phone.behave(Reject(status, after_s=0.5))
        async with rig.watch() as watcher:
            waiting = asyncio.create_task(rig.dial(wait_until_answered=True))
            sid = (await rig.visible()).sid
            with pytest.raises(api.SipCallError) as raised:
                await waiting
            assert await watcher.reason(sid) == reason
        error = raised.value
        assert (error.code, error.status) == (code, http)
        assert error.sip_status_code == status
        assert error.sip_status
        assert "error_details" in error.metadata
        assert watcher.statuses[-1] == "ringing"

    async def test_a_refusal_at_once(self, rig: Rig) -> None:
        rig.phone.behave(Reject(486))
        for _ in range(5):
            with pytest.raises(api.SipCallError) as raised:
                await rig.dial(wait_until_answered=True)
            assert raised.value.sip_status_code == 486

    async def test_nobody_answers(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        async with rig.watch() as watcher:
            waiting = asyncio.create_task(
                rig.dial(wait_until_answered=True, ringing_timeout=seconds(1))
            )
            sid = (await rig.visible()).sid
            with pytest.raises(api.ServerError) as raised:
                await waiting
            assert await watcher.reason(sid) == "USER_UNAVAILABLE"
        assert (raised.value.code, raised.value.status) == ("canceled", 408)
        assert not isinstance(raised.value, api.SipCallError)
        call = await rig.phone.next_call(WAIT)
        assert by_us(await call.ended(WAIT)) == ("remote", "cancel")

    async def test_a_host_that_does_not_exist(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            waiting = asyncio.create_task(
                rig.dial(address="nowhere.invalid", wait_until_answered=True)
            )
            sid = (await rig.visible()).sid
            with pytest.raises(api.ServerError) as raised:
                await waiting
            assert await watcher.reason(sid) == "CLIENT_INITIATED"
        assert (raised.value.code, raised.value.status) == ("invalid_argument", 400)

    async def test_an_unknown_trunk(self, rig: Rig) -> None:
        request = dial_request(rig.room, "unused", sip_trunk_id="ST_unknown")
        request.ClearField("trunk")
        with pytest.raises(api.ServerError) as raised:
            await rig.sip.create_sip_participant(request)
        assert (raised.value.code, raised.value.status) == ("not_found", 404)

    @pytest.mark.parametrize(
        "fields",
        [
            {"sip_call_to": ""},
            {"sip_call_to": "alice@example.com"},
            {"room_name": ""},
            {"headers": {"From": "<sip:x@y>"}},
            {"headers": {"Contact": "<sip:x@y>"}},
            {"headers": {"Max-Forwards": "1"}},
            {"headers": {"X-A": "1\r\nX-B: 2"}},
            {"headers": {"X A": "1"}},
            {"address": "sip:127.0.0.1"},
            {"address": "127.0.0.1;transport=tcp"},
            {"display_name": "x" * 200},
            {"display_name": 'a" <sip:x@y>\r\nX: y'},
        ],
    )
    async def test_what_may_not_be_dialled(self, rig: Rig, fields: dict[str, Any]) -> None:
        with pytest.raises(api.ServerError) as raised:
            await rig.dial(**fields)
        assert (raised.value.code, raised.value.status) == ("invalid_argument", 400)
        assert rig.phone.invites == 0

    # --- outbound: the INVITE

    async def test_the_caller_and_headers_on_the_wire(self, rig: Rig) -> None:
        _, call = await rig.connect(headers={"X-Order": "a 17"}, display_name="Ann Lee")
        assert (call.caller, call.called) == (CALLER, CALLED)
        assert call.headers["x-order"] == "a 17"
        assert call.headers["from"].startswith('"Ann Lee" <sip:')

    @pytest.mark.parametrize(
        ("display_name", "begin"), [(None, f'"{CALLER}" <'), ("", "<")], ids=["unset", "empty"]
    )
    async def test_the_default_display_name_is_the_number(
        self, rig: Rig, display_name: str | None, begin: str
    ) -> None:
        _, call = await rig.connect(display_name=display_name)
        assert call.headers["from"].startswith(begin)

    async def test_each_call_has_its_own_host_and_credentials(self, rig: Rig) -> None:
        anna, bert = Credentials("anna", "secret-a"), Credentials("bert", "secret-b")
        async with Phone() as other, Trunk(rig.phone.address, anna) as one:
            async with Trunk(other.address, bert, challenge_status=401) as two:
                await asyncio.gather(
                    *(
                        rig.dial(
                            trunk=pb.SIPOutboundConfig(
                                hostname=trunk.address,
                                auth_username=who.username,
                                auth_password=who.password,
                            ),
                            participant_identity=who.username,
                            wait_until_answered=True,
                        )
                        for trunk, who in ((one, anna), (two, bert))
                    )
                )
                assert (one.invites, two.invites) == (1, 1)
                assert one.seen.callers == two.seen.callers == [CALLER]
                assert one.gate is not None and one.gate.usernames == {"anna"}
                assert two.gate is not None and two.gate.usernames == {"bert"}

    @pytest.mark.parametrize("password", ["wrong", ""])
    async def test_wrong_or_missing_credentials(self, rig: Rig, password: str) -> None:
        async with Trunk(
            rig.phone.address, Credentials("anna", "secret"), wrong_answers_allowed=9
        ) as trunk:
            config = pb.SIPOutboundConfig(
                hostname=trunk.address,
                auth_username="anna" if password else "",
                auth_password=password,
            )
            async with rig.watch() as watcher:
                waiting = asyncio.create_task(rig.dial(trunk=config, wait_until_answered=True))
                sid = (await rig.visible()).sid
                with pytest.raises(api.ServerError) as raised:
                    await waiting
                assert await watcher.reason(sid) == "USER_REJECTED"
        assert (raised.value.code, raised.value.status) == ("failed_precondition", 412)
        assert rig.phone.invites == 0

    async def test_a_stored_trunk(self, rig: Rig) -> None:
        trunk = await rig.sip.create_outbound_trunk(
            pb.CreateSIPOutboundTrunkRequest(
                trunk=pb.SIPOutboundTrunkInfo(
                    name="out",
                    address=rig.phone.address,
                    numbers=["+15550001"],
                    headers={"X-Trunk": "t", "X-Both": "trunk"},
                )
            )
        )
        try:
            request = dial_request(
                rig.room, "ignored.invalid", sip_trunk_id=trunk.sip_trunk_id,
                headers={"X-Both": "request"}, wait_until_answered=True,
            )  # fmt: skip
            request.ClearField("sip_number")
            await rig.sip.create_sip_participant(request)
            call = await rig.phone.next_call(WAIT)
            assert call.caller == "+15550001"
            assert (call.headers["x-trunk"], call.headers["x-both"]) == ("t", "request")
            assert (await rig.participant()).attributes["sip.trunkID"] == trunk.sip_trunk_id
        finally:
            await rig.sip.delete_trunk(pb.DeleteSIPTrunkRequest(sip_trunk_id=trunk.sip_trunk_id))

    # --- how calls end

    async def test_the_phone_hangs_up(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect()
            await watcher.until(lambda: "active" in watcher.statuses)
            await call.hangup()
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"
        assert watcher.statuses[-1] == "hangup"

    async def test_removal_hangs_up(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect()
            await watcher.until(lambda: "active" in watcher.statuses)
            await rig.lk.room.remove_participant(
                api.RoomParticipantIdentity(room=rig.room, identity=IDENTITY)
            )
            assert by_us(await call.ended(WAIT)) == ("remote", "bye")
            assert await watcher.reason(info.participant_id) == "PARTICIPANT_REMOVED"
        assert watcher.statuses[-1] == "active"

    async def test_removal_while_it_rings_cancels(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        await rig.dial()
        call = await rig.phone.next_call(WAIT)
        await rig.lk.room.remove_participant(
            api.RoomParticipantIdentity(room=rig.room, identity=IDENTITY)
        )
        assert by_us(await call.ended(WAIT)) == ("remote", "cancel")

    async def test_removal_before_it_rings_cancels_too(self, rig: Rig) -> None:
        """The INVITE has been sent but not yet answered; no phone may go on ringing."""
        rig.phone.behave(RingOut())
        async with Trunk(rig.phone.address) as trunk:
            rooms = [new_room() for _ in range(8)]

            async def dial_and_remove(room: str) -> None:
                request = dial_request(room, trunk.address)
                await rig.sip.create_sip_participant(request)
                await rig.lk.room.remove_participant(
                    api.RoomParticipantIdentity(room=room, identity=IDENTITY)
                )

            await asyncio.gather(*(dial_and_remove(room) for room in rooms))
            for _ in rooms:  # not all INVITEs have reached the phone yet
                call = await rig.phone.next_call(WAIT)
                assert by_us(await call.ended(WAIT)) == ("remote", "cancel")
            assert trunk.invites == len(rooms)

    async def test_deleting_the_room_hangs_up(self, rig: Rig) -> None:
        _, call = await rig.connect()
        await rig.lk.room.delete_room(api.DeleteRoomRequest(room=rig.room))
        assert by_us(await call.ended(WAIT)) == ("remote", "bye")

    async def test_the_same_identity_again_ends_the_first_call(self, rig: Rig) -> None:
        _, first = await rig.connect()
        info, second = await rig.connect()
        assert by_us(await first.ended(WAIT)) == ("remote", "bye")
        assert second.ending is None
        assert (await rig.participant()).sid == info.participant_id

    async def test_the_longest_duration_ends_a_call(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect(max_call_duration=seconds(2))
            assert by_us(await call.ended(WAIT)) == ("remote", "bye")
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"
        assert watcher.statuses[-1] == "hangup"

    async def test_the_room_hangs_up_by_rpc(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect()
            # livekit-sip sometimes leaves before it has answered the RPC.
            with contextlib.suppress(rtc.RpcError):
                await watcher.room.local_participant.perform_rpc(
                    destination_identity=IDENTITY, method="lk.sip.EndCall", payload='{"headers":{}}'
                )
            assert by_us(await call.ended(WAIT)) == ("remote", "bye")
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"

    async def test_a_client_that_goes_away_does_not_end_the_dial(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        waiting = asyncio.create_task(rig.dial(wait_until_answered=True))
        call = await rig.phone.next_call(WAIT)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await call.answer()
        await call.answered(WAIT)
        assert (await rig.participant()).sid

"""Inbound calls, and the trunks and rules that choose their rooms."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from livekit import api
from livekit.protocol import sip as pb

from dev.phone import PhoneCall
from dev.stack.sip_backends import WAIT
from tests.sip.contract.rig import (
    CALLED,
    CALLER,
    Rig,
    Voice,
    hear,
    level_at,
    seconds,
    tone,
    tracks,
)


class InboundContract:
    """Subclasses provide the fixture ``rig``."""

    # --- inbound

    async def test_an_inbound_call(self, rig: Rig) -> None:
        agents = api.RoomConfiguration(
            metadata="room meta",
            agents=[api.RoomAgentDispatch(agent_name="nobody", metadata="job meta")],
        )
        async with self.inbound(rig, room_config=agents, metadata="part meta") as (trunk, rule):
            call = await self.ring(rig)
            await call.ringing(WAIT)
            participant = await self.caller_in(rig)
            assert participant.kind == api.ParticipantInfo.Kind.SIP
            assert participant.metadata == "part meta"
            assert participant.attributes["sip.callStatus"] == "ringing"
            assert participant.attributes["sip.phoneNumber"] == CALLER
            assert participant.attributes["sip.trunkPhoneNumber"] == trunk.numbers[0]
            assert participant.attributes["sip.trunkID"] == trunk.sip_trunk_id
            assert participant.attributes["sip.ruleID"] == rule.sip_dispatch_rule_id
            assert participant.attributes["from-rule"] == "yes"
            rooms = await rig.lk.room.list_rooms(api.ListRoomsRequest(names=[rig.room]))
            assert rooms.rooms[0].metadata == "room meta"
            dispatches = await rig.lk.agent_dispatch.list_dispatch(rig.room)
            assert [(d.agent_name, d.metadata) for d in dispatches] == [("nobody", "job meta")]
            assert not call.was_up
            async with rig.watch() as watcher:
                voice = Voice(watcher.room)
                await voice.publish()
                await call.answered(WAIT)
                await watcher.until(lambda: "active" in watcher.statuses)
                await watcher.until(lambda: tracks(watcher.room))
                heard = asyncio.create_task(hear(tracks(watcher.room)[0], 1.0))
                await asyncio.gather(call.play(tone(700, 1.4)), voice.say(tone(1100, 1.4)))
                assert level_at((await asyncio.wait_for(heard, WAIT))[-4000:], 700) > 0.8
                assert level_at(call.recording.received[-6400:], 1100) > 0.5
                await call.hangup()
                assert await watcher.reason(participant.sid) == "CLIENT_INITIATED"
            assert watcher.statuses[-1] == "hangup"

    async def test_an_inbound_call_that_nobody_answers(self, rig: Rig) -> None:
        async with self.inbound(rig, ringing_timeout=seconds(1)):
            async with rig.watch() as watcher:
                call = await self.ring(rig)
                ended = await call.ended(WAIT)
                assert (ended.how, ended.status) == ("refused", 486)
                await watcher.until(lambda: watcher.reasons)
            assert set(watcher.reasons.values()) == {"CLIENT_INITIATED"}
            assert watcher.statuses == ["ringing"]

    async def test_a_caller_who_gives_up(self, rig: Rig) -> None:
        async with self.inbound(rig):
            call = await self.ring(rig)
            sid = (await self.caller_in(rig)).sid
            async with rig.watch() as watcher:
                await call.hangup()
                assert await watcher.reason(sid) == "CLIENT_INITIATED"

    async def test_a_caller_who_is_sent_away(self, rig: Rig) -> None:
        """A caller removed while unanswered is refused at once, however long it has rung."""
        async with self.inbound(rig):
            for rings in (False, True):
                call = await self.ring(rig)
                async with asyncio.timeout(WAIT):
                    while (await self.caller_in(rig)).state != api.ParticipantInfo.State.ACTIVE:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                if rings:
                    await call.ringing(WAIT)
                    await asyncio.sleep(0.3)
                await rig.lk.room.remove_participant(
                    api.RoomParticipantIdentity(room=rig.room, identity=f"sip_{CALLER}")
                )
                # Sooner than any timeout of the SIP service.
                ended = await call.ended(8)
                assert (ended.how, ended.status) == ("refused", 486)

    async def test_individual_and_callee_rooms(self, rig: Rig) -> None:
        individual = pb.SIPDispatchRule(
            dispatch_rule_individual=pb.SIPDispatchRuleIndividual(room_prefix=rig.room)
        )
        async with self.inbound(rig, rule=individual):
            call = await self.ring(rig)
            name = await self.room_like(rig, f"{rig.room}_{CALLER}_")
            await call.hangup()
            await call.ended(WAIT)
        await rig.lk.room.delete_room(api.DeleteRoomRequest(room=name))
        callee = pb.SIPDispatchRule(
            dispatch_rule_callee=pb.SIPDispatchRuleCallee(room_prefix=rig.room, randomize=True)
        )
        async with self.inbound(rig, rule=callee) as (trunk, _):
            call = await self.ring(rig)
            name = await self.room_like(rig, f"{rig.room}_{trunk.numbers[0]}_")
            await call.hangup()
            await call.ended(WAIT)
        await rig.lk.room.delete_room(api.DeleteRoomRequest(room=name))

    async def test_headers_of_an_inbound_call(self, rig: Rig) -> None:
        trunk = pb.SIPInboundTrunkInfo(
            include_headers=pb.SIPHeaderOptions.SIP_X_HEADERS,
            headers_to_attributes={"X-Order": "order"},
        )
        async with self.inbound(rig, trunk=trunk):
            call = await self.ring(rig, headers={"X-Order": "17", "X-Other": "z"})
            attributes = (await self.caller_in(rig)).attributes
            assert attributes["order"] == attributes["sip.h.x-order"] == "17"
            assert attributes["sip.h.x-other"] == "z"
            assert attributes["sip.callIDFull"] == call.call_id
            await call.hangup()

    # --- trunks and rules

    async def test_trunks_and_rules_are_kept(self, rig: Rig) -> None:
        async with self.inbound(rig) as (trunk, rule):
            listed = await rig.sip.list_inbound_trunk(
                pb.ListSIPInboundTrunkRequest(trunk_ids=[trunk.sip_trunk_id])
            )
            assert [item.sip_trunk_id for item in listed.items] == [trunk.sip_trunk_id]
            updated = await rig.sip.update_inbound_trunk_fields(
                trunk.sip_trunk_id, name="renamed", allowed_numbers=[CALLER]
            )
            assert (updated.name, list(updated.allowed_numbers)) == ("renamed", [CALLER])
            assert list(updated.numbers) == list(trunk.numbers)
            rules = await rig.sip.list_dispatch_rule(
                pb.ListSIPDispatchRuleRequest(trunk_ids=[trunk.sip_trunk_id])
            )
            assert rule.sip_dispatch_rule_id in {r.sip_dispatch_rule_id for r in rules.items}
            changed = await rig.sip.update_dispatch_rule_fields(
                rule.sip_dispatch_rule_id, metadata="new"
            )
            assert changed.metadata == "new"
            with pytest.raises(api.ServerError) as raised:
                await rig.sip.create_inbound_trunk(
                    pb.CreateSIPInboundTrunkRequest(
                        trunk=pb.SIPInboundTrunkInfo(
                            numbers=trunk.numbers, allowed_numbers=[CALLER]
                        )
                    )
                )
            assert raised.value.code == "invalid_argument"
        gone = pb.DeleteSIPTrunkRequest(sip_trunk_id=trunk.sip_trunk_id)
        assert (await rig.sip.delete_trunk(gone)).sip_trunk_id == trunk.sip_trunk_id
        listed = await rig.sip.list_inbound_trunk(
            pb.ListSIPInboundTrunkRequest(trunk_ids=[trunk.sip_trunk_id])
        )
        assert not listed.items

    async def test_a_trunk_that_is_open_to_everyone_is_not_taken(self, rig: Rig) -> None:
        trunk = pb.SIPInboundTrunkInfo(name="open to everyone")
        with pytest.raises(api.ServerError) as raised:
            await rig.sip.create_inbound_trunk(pb.CreateSIPInboundTrunkRequest(trunk=trunk))
        assert raised.value.code == "invalid_argument"

    @contextlib.asynccontextmanager
    async def inbound(
        self,
        rig: Rig,
        *,
        trunk: pb.SIPInboundTrunkInfo | None = None,
        rule: pb.SIPDispatchRule | None = None,
        ringing_timeout: Duration | None = None,
        **fields: Any,
    ) -> AsyncIterator[tuple[pb.SIPInboundTrunkInfo, pb.SIPDispatchRuleInfo]]:
        """Create a trunk for one number, and a rule that leads to the rig's room."""
        info = trunk or pb.SIPInboundTrunkInfo()
        info.numbers[:] = [CALLED]
        info.ringing_timeout.CopyFrom(ringing_timeout or seconds(30))
        stored = await rig.sip.create_inbound_trunk(pb.CreateSIPInboundTrunkRequest(trunk=info))
        try:
            direct = pb.SIPDispatchRule(
                dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name=rig.room)
            )
            made = await rig.sip.create_dispatch_rule(
                pb.CreateSIPDispatchRuleRequest(
                    dispatch_rule=pb.SIPDispatchRuleInfo(
                        rule=rule or direct,
                        trunk_ids=[stored.sip_trunk_id],
                        attributes={"from-rule": "yes"},
                        **fields,
                    )
                )
            )
            try:
                yield stored, made
            finally:
                await rig.sip.delete_dispatch_rule(
                    pb.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=made.sip_dispatch_rule_id)
                )
        finally:
            await rig.sip.delete_trunk(pb.DeleteSIPTrunkRequest(sip_trunk_id=stored.sip_trunk_id))

    async def ring(self, rig: Rig, **fields: Any) -> PhoneCall:
        return await rig.phone.dial(
            f"sip:{CALLED}@{rig.backend.sip_address}", caller=CALLER, **fields
        )

    async def caller_in(self, rig: Rig) -> Any:
        """Return the caller's participant, once it is in the rig's room."""
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    return await rig.lk.room.get_participant(
                        api.RoomParticipantIdentity(room=rig.room, identity=f"sip_{CALLER}")
                    )
                except api.TwirpError as error:
                    if error.code != "not_found":
                        raise
                await asyncio.sleep(0.01)

    async def room_like(self, rig: Rig, prefix: str) -> str:
        async with asyncio.timeout(WAIT):
            while True:
                rooms = await rig.lk.room.list_rooms(api.ListRoomsRequest())
                for room in rooms.rooms:
                    if room.name.startswith(prefix):
                        return str(room.name)
                await asyncio.sleep(0.01)

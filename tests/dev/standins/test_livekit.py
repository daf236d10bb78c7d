"""dev.standins.livekit answers as a real livekit-server does: one suite runs on both."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from livekit import rtc
from livekit.api import AccessToken, LiveKitAPI, ServerError, SipCallError, VideoGrants
from livekit.protocol.agent_dispatch import CreateAgentDispatchRequest, RoomAgentDispatch
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import (
    CreateRoomRequest,
    DeleteRoomRequest,
    ListParticipantsRequest,
    ListRoomsRequest,
    RoomParticipantIdentity,
    UpdateRoomMetadataRequest,
)
from livekit.protocol.sip import (
    CreateSIPParticipantRequest,
    SIPOutboundConfig,
    SIPParticipantInfo,
    TransferSIPParticipantRequest,
)

from core.models import new_id
from dev.phone import Answer, Phone, Reject
from dev.stack import Stack, StackOptions
from dev.standins import livekit
from dev.standins.livekit import LiveKitStub, Refusal
from tests.support.livekit_stub import reached

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

AGENT = "switchroom"
ACTIVE = ParticipantInfo.State.ACTIVE
# The refusals of the far end that the gateway's tests rely on, as the SIP API reports them.
REFUSALS = {
    404: Refusal("not_found", sip_status_code="404"),
    486: Refusal("resource_exhausted", sip_status_code="486"),
    603: Refusal("permission_denied", sip_status_code="603"),
}


class Rig(ABC):
    """A LiveKit without a worker; ``enter`` brings a phone into a room.

    ``sip`` is its SIP API; ``callee`` and ``human`` are addresses of phones that answer as
    ``answers`` says.
    """

    def __init__(self, api: LiveKitAPI, sip: LiveKitAPI, callee: str, human: str) -> None:
        self.api = api
        self.sip = sip
        self.callee = callee
        self.human = human

    @abstractmethod
    async def enter(self, room: str, identity: str, **attributes: str) -> None: ...

    @abstractmethod
    def answers(self, status: int | None) -> None:
        """Refuse later calls with a SIP status; None: answer them."""

    async def dial(self, room: str, identity: str, **attributes: str) -> SIPParticipantInfo:
        """Dial a phone, and wait until it answers or refuses."""
        asked = CreateSIPParticipantRequest(
            trunk=SIPOutboundConfig(hostname=self.callee),
            sip_call_to="+15551234567",
            sip_number="+15105550123",
            room_name=room,
            participant_identity=identity,
            participant_attributes=attributes,
            wait_until_answered=True,
        )
        return await self.sip.sip.create_sip_participant(asked)

    async def refer(self, room: str, identity: str) -> None:
        asked = TransferSIPParticipantRequest(
            room_name=room,
            participant_identity=identity,
            transfer_to=f"sip:+15557654321@{self.human}",
        )
        await self.sip.sip.transfer_sip_participant(asked)

    async def gone(self, room: str) -> None:
        """Wait until the room is empty."""
        async with asyncio.timeout(10):
            while await self.present(room):  # noqa: ASYNC110 (nothing to await)
                await asyncio.sleep(0.05)

    async def create(self, name: str, metadata: str = "", agent: str = "") -> None:
        agents = [RoomAgentDispatch(agent_name=agent)] if agent else []
        asked = CreateRoomRequest(name=name, metadata=metadata, agents=agents)
        made = await self.api.room.create_room(asked)
        assert made.name == name

    async def rooms(self, *names: str) -> dict[str, str]:
        """Return the rooms' metadata by name."""
        listed = await self.api.room.list_rooms(ListRoomsRequest(names=names))
        return {room.name: room.metadata for room in listed.rooms}

    async def present(self, room: str) -> list[ParticipantInfo]:
        listed = await self.api.room.list_participants(ListParticipantsRequest(room=room))
        return list(listed.participants)

    async def dispatches(self, room: str) -> list[tuple[str, int]]:
        """Return the agent's name and the number of jobs of each dispatch.

        LiveKit adds a dispatch without a name to a room made without agents; it is left out.
        """
        listed = await self.api.agent_dispatch.list_dispatch(room)
        return [(one.agent_name, len(one.state.jobs)) for one in listed if one.agent_name]


class StubRig(Rig):
    def __init__(self, api: LiveKitAPI, stub: LiveKitStub) -> None:
        super().__init__(api, api, "callee.example", "human.example")
        self._stub = stub

    def answers(self, status: int | None) -> None:
        self._stub.answer = REFUSALS[status] if status is not None else None

    async def enter(self, room: str, identity: str, **attributes: str) -> None:
        self._stub.enter(room, livekit.phone(identity, **attributes))


class ServerRig(Rig):
    def __init__(
        self,
        api: LiveKitAPI,
        sip: LiveKitAPI,
        callee: Phone,
        human: Phone,
        stack: Stack,
        cleanup: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(api, sip, callee.address, human.address)
        self._phones = (callee, human)
        self._settings = stack.settings
        self._cleanup = cleanup

    def answers(self, status: int | None) -> None:
        for phone in self._phones:
            phone.behave(Answer() if status is None else Reject(status))

    async def enter(self, room: str, identity: str, **attributes: str) -> None:
        key, secret = self._settings.livekit_api_key, self._settings.livekit_api_secret
        assert key is not None and secret is not None
        token = AccessToken(key, secret.get_secret_value()).with_identity(identity)
        token = token.with_kind("sip").with_attributes(attributes)
        token = token.with_grants(VideoGrants(room_join=True, room=room))
        joined = rtc.Room()
        await joined.connect(self._settings.livekit_url, token.to_jwt())
        self._cleanup.push_async_callback(joined.disconnect)
        asked = RoomParticipantIdentity(room=room, identity=identity)
        async with asyncio.timeout(10):
            while (await self.api.room.get_participant(asked)).state != ACTIVE:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@contextlib.contextmanager
def refused(code: str, status: int) -> Iterator[None]:
    with pytest.raises(ServerError) as caught:
        yield
    assert (caught.value.code, caught.value.status) == (code, status)


@contextlib.contextmanager
def refused_by_phone(sip_status: int) -> Iterator[None]:
    wanted = REFUSALS[sip_status]
    with pytest.raises(SipCallError) as caught:
        yield
    assert (caught.value.code, caught.value.status) == (str(wanted), wanted.status)
    assert caught.value.sip_status_code == sip_status


class LiveKitContract:
    """Subclasses provide the fixture ``rig``."""

    async def test_a_room_is_listed_with_its_metadata(self, rig: Rig) -> None:
        room, other = new_id("room"), new_id("room")
        assert await rig.rooms(room) == {}
        await rig.create(room, "of acme")
        assert await rig.rooms(room, other) == {room: "of acme"}
        assert room in await rig.rooms()

    async def test_a_room_that_is_made_again_stays_as_it_is(self, rig: Rig) -> None:
        room = new_id("room")
        await rig.create(room, "first", agent=AGENT)
        await rig.create(room, "second", agent=AGENT)
        assert await rig.rooms(room) == {room: "first"}
        assert await rig.dispatches(room) == [(AGENT, 0)]

    async def test_a_room_that_was_deleted_is_made_anew(self, rig: Rig) -> None:
        room = new_id("room")
        await rig.create(room, "first", agent=AGENT)
        await rig.api.room.delete_room(DeleteRoomRequest(room=room))
        await rig.create(room, "second")
        assert await rig.rooms(room) == {room: "second"}
        assert await rig.dispatches(room) == []

    async def test_a_rooms_metadata_changes(self, rig: Rig) -> None:
        room = new_id("room")
        await rig.create(room, "old")
        await rig.api.room.update_room_metadata(
            UpdateRoomMetadataRequest(room=room, metadata="new")
        )
        assert await rig.rooms(room) == {room: "new"}
        with refused("not_found", 404):
            await rig.api.room.update_room_metadata(
                UpdateRoomMetadataRequest(room=new_id("room"), metadata="new")
            )

    async def test_a_room_is_deleted_once(self, rig: Rig) -> None:
        room = new_id("room")
        await rig.create(room)
        await rig.api.room.delete_room(DeleteRoomRequest(room=room))
        assert await rig.rooms(room) == {}
        with refused("not_found", 404):
            await rig.api.room.delete_room(DeleteRoomRequest(room=room))

    async def test_who_is_in_a_room(self, rig: Rig) -> None:
        room = new_id("room")
        await rig.create(room)
        assert await rig.present(room) == []
        await rig.enter(room, "phone", **{"sip.callStatus": "active"})
        (found,) = await rig.present(room)
        asked = RoomParticipantIdentity(room=room, identity="phone")
        for told in (found, await rig.api.room.get_participant(asked)):
            assert told.identity == "phone" and told.sid.startswith("PA_")
            assert told.kind == ParticipantInfo.Kind.SIP
            assert told.state == ACTIVE
            assert told.attributes["sip.callStatus"] == "active"

    async def test_somebody_who_is_not_there(self, rig: Rig) -> None:
        room = new_id("room")
        assert await rig.present(room) == []
        for _ in range(2):
            nobody = RoomParticipantIdentity(room=room, identity="phone")
            with refused("not_found", 404):
                await rig.api.room.get_participant(nobody)
            with refused("not_found", 404):
                await rig.api.room.remove_participant(nobody)
            await rig.create(room)

    async def test_somebody_is_removed(self, rig: Rig) -> None:
        room = new_id("room")
        await rig.create(room)
        await rig.enter(room, "phone")
        phone = RoomParticipantIdentity(room=room, identity="phone")
        await rig.api.room.remove_participant(phone)
        await rig.gone(room)
        assert room in await rig.rooms(room)

    async def test_an_agent_is_sent_with_the_room(self, rig: Rig) -> None:
        room = new_id("room")
        await rig.create(room, agent=AGENT)
        assert await rig.dispatches(room) == [(AGENT, 0)]

    async def test_an_agent_is_sent_later(self, rig: Rig) -> None:
        """The room is created if it does not exist."""
        room = new_id("room")
        asked = CreateAgentDispatchRequest(room=room, agent_name=AGENT)
        first, second = [await rig.api.agent_dispatch.create_dispatch(asked) for _ in range(2)]
        assert (first.room, first.agent_name) == (room, AGENT)
        assert first.id != second.id
        assert await rig.dispatches(room) == [(AGENT, 0), (AGENT, 0)]
        assert room in await rig.rooms(room)

    async def test_the_agents_of_a_room_that_is_not_there(self, rig: Rig) -> None:
        with refused("unavailable", 503):
            await rig.dispatches(new_id("room"))

    async def test_a_phone_that_answers(self, rig: Rig) -> None:
        room = new_id("room")
        rig.answers(None)
        made = await rig.dial(room, "callee", **{"our.mark": "yes"})
        assert (made.room_name, made.participant_identity) == (room, "callee")
        (found,) = await rig.present(room)
        assert (found.identity, found.kind) == ("callee", ParticipantInfo.Kind.SIP)
        assert found.sid == made.participant_id
        assert found.attributes["sip.callID"] == made.sip_call_id != ""
        assert found.attributes["our.mark"] == "yes"
        async with asyncio.timeout(10):  # the answer is told first
            while found.attributes["sip.callStatus"] != "active":
                await asyncio.sleep(0.05)
                (found,) = await rig.present(room)

    @pytest.mark.parametrize("status", REFUSALS)
    async def test_a_phone_that_refuses(self, rig: Rig, status: int) -> None:
        room = new_id("room")
        rig.answers(status)
        with refused_by_phone(status):
            await rig.dial(room, "callee")
        await rig.gone(room)

    async def test_a_phone_that_is_sent_elsewhere(self, rig: Rig) -> None:
        room = new_id("room")
        rig.answers(None)
        await rig.dial(room, "callee")
        await rig.refer(room, "callee")
        await rig.gone(room)

    @pytest.mark.parametrize("status", REFUSALS)
    async def test_a_phone_whose_new_callee_refuses(self, rig: Rig, status: int) -> None:
        room = new_id("room")
        rig.answers(None)
        await rig.dial(room, "callee")
        rig.answers(status)
        with refused_by_phone(status):
            await rig.refer(room, "callee")
        (found,) = await rig.present(room)
        assert found.identity == "callee"

    async def test_nobody_is_sent_elsewhere(self, rig: Rig) -> None:
        rig.answers(None)
        with refused("not_found", 404):
            await rig.refer(new_id("room"), "callee")


class TestStub(LiveKitContract):
    @pytest_asyncio.fixture(loop_scope="session")
    async def rig(self) -> AsyncIterator[Rig]:
        stub = LiveKitStub(workers_full=True)
        async with reached(stub) as api:
            yield StubRig(api, stub)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[Stack]:
    options = StackOptions(providers=False, gateway=False, worker=0)
    async with Stack(options) as stack:
        yield stack


class TestServer(LiveKitContract):
    @pytest_asyncio.fixture(loop_scope="session")
    async def rig(self, server: Stack) -> AsyncIterator[Rig]:
        async with contextlib.AsyncExitStack() as cleanup:
            api = await cleanup.enter_async_context(server.api())
            sip = await cleanup.enter_async_context(server.sip_api())
            callee, human = [await cleanup.enter_async_context(Phone()) for _ in range(2)]
            yield ServerRig(api, sip, callee, human, server, cleanup)

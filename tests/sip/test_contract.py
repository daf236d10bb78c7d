"""The SIP contract on the embedded bridge, and on livekit-sip if it is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from livekit.protocol.room import RoomParticipantIdentity

from dev.stack.sip_backends import WAIT, Backend, bridge_backend, livekit_sip_backend
from sip.leave import leaves_by_itself
from tests.sip.contract import SipContract
from tests.sip.contract.rig import (
    IDENTITY,
    Rig,
    by_us,
    livekit_sip_binary,
    missing_for_livekit_sip,
    open_rig,
)

pytestmark = [pytest.mark.sip, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bridge() -> AsyncIterator[Backend]:
    async with bridge_backend() as backend:
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def livekit_sip(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    directory = tmp_path_factory.mktemp("livekit-sip")
    binary = livekit_sip_binary()
    assert binary is not None
    async with livekit_sip_backend(directory, binary) as backend:
        yield backend


class TestBridge(SipContract):
    @pytest_asyncio.fixture(loop_scope="session")
    async def rig(self, bridge: Backend) -> AsyncIterator[Rig]:
        async with open_rig(bridge) as rig:
            yield rig

    async def test_one_who_is_asked_leaves_by_itself(self, rig: Rig) -> None:
        whom = RoomParticipantIdentity(room=rig.room, identity=IDENTITY)
        async with rig.watch() as watcher:
            info, call = await rig.connect()
            assert await leaves_by_itself(rig.lk, whom)
            assert by_us(await call.ended(WAIT)) == ("remote", "bye")
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"
        assert watcher.statuses[-1] == "active"
        assert not await leaves_by_itself(rig.lk, whom)


@pytest.mark.skipif(bool(missing_for_livekit_sip()), reason=missing_for_livekit_sip())
class TestLiveKitSip(SipContract):
    @pytest_asyncio.fixture(loop_scope="session")
    async def rig(self, livekit_sip: Backend) -> AsyncIterator[Rig]:
        async with open_rig(livekit_sip) as rig:
            yield rig

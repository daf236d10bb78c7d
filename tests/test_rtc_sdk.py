"""Nothing that is signalled to LiveKit waits in the kernel."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from livekit import api, rtc

from core.rtc_sdk import disable_nagle
from dev.stack import Stack
from sip.sdk import connect


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        yield client


def waits(connection: socket.socket) -> bool:
    return not connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.unit
def test_whatever_else_is_open(connection: socket.socket) -> None:
    assert waits(connection)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM), open(os.devnull):
        near, far = socket.socketpair()
        disable_nagle()
        near.close()
        far.close()
    assert not waits(connection)


@pytest.mark.stack
async def test_a_room_that_is_joined(stack: Stack) -> None:
    settings = stack.settings
    assert settings.livekit_api_key and settings.livekit_api_secret
    token = (
        api.AccessToken(settings.livekit_api_key, settings.livekit_api_secret.get_secret_value())
        .with_identity("one who signals")
        .with_grants(api.VideoGrants(room_join=True, room="signals"))
    )
    room = rtc.Room()
    await connect(room, settings.livekit_url, token.to_jwt(), rtc.RoomOptions(), timeout_s=10)
    try:
        # The first signal after the join: what the room had to tell by itself has been told.
        source = rtc.AudioSource(8000, 1)
        track = rtc.LocalAudioTrack.create_audio_track("voice", source)
        await room.local_participant.publish_track(track)
        flags = list(flags_to(urlsplit(settings.livekit_url).port))
        assert flags and not any(flags)
    finally:
        await room.disconnect()


def flags_to(port: int | None) -> Iterator[bool]:
    """Of each TCP connection of this process to ``port``, whether it waits."""
    for name in os.listdir("/dev/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with found:
            try:
                if found.type == socket.SOCK_STREAM and found.getpeername()[1] == port:
                    yield waits(found)
            except (OSError, IndexError):
                continue

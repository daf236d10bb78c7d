"""The participant that joins a room on a phone's behalf, and the LiveKit server of the room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from livekit import api, rtc
from livekit.protocol.room import RoomConfiguration

from core.legs import BRIDGE


@dataclass(frozen=True, slots=True)
class LiveKit:
    """The LiveKit server's URL and API key."""

    url: str
    api_key: str
    api_secret: str = field(repr=False)
    mark: str = ""
    """The mark of this bridge's legs (sip.bridge.calls.leftovers)."""

    def client(self) -> api.LiveKitAPI:
        """Return a client for requests about rooms; the caller closes it."""
        return api.LiveKitAPI(self.url, self.api_key, self.api_secret, failover=False)

    def rtc_configuration(self) -> rtc.RtcConfiguration:
        """Return the RTC configuration, without STUN for a server on this machine.

        A LiveKit server without STUN servers of its own names public ones. Each join would
        resolve them, with a thread and a socket for every name, for minutes if there is no
        internet. Loopback needs none. The SDK takes an empty list to mean the server's list,
        hence a dummy.
        """
        host = urlsplit(self.url).hostname or ""
        if host != "localhost" and not host.startswith("127.") and host != "::1":
            return rtc.RtcConfiguration()
        return rtc.RtcConfiguration(ice_servers=[rtc.IceServer(urls=["stun:127.0.0.1:9"])])


@dataclass(frozen=True, slots=True)
class Participant:
    """The participant that joins ``room`` on a phone's behalf."""

    room: str
    identity: str
    name: str
    metadata: str
    attributes: Mapping[str, str]
    room_config: RoomConfiguration | None = None

    def token(self, livekit: LiveKit) -> str:
        token = (
            api.AccessToken(livekit.api_key, livekit.api_secret)
            .with_identity(self.identity)
            .with_name(self.name)
            .with_metadata(self.metadata)
            .with_kind("sip")
            .with_attributes({**self.attributes, BRIDGE: livekit.mark})
            .with_grants(
                api.VideoGrants(room_join=True, room=self.room, can_update_own_metadata=True)
            )
        )
        if self.room_config is not None:
            token = token.with_room_config(self.room_config)
        return token.to_jwt()

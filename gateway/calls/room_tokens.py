"""Tokens for people who join rooms: the identities allowed in them, and their grants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated

from livekit.api import AccessToken, VideoGrants
from pydantic import AfterValidator

from core.settings import Settings
from core.transfers import HUMAN_PREFIX
from gateway.calls.rooms import configuration
from gateway.fields.names import Name
from gateway.store.room_names import Claim

_RESERVED = (
    "agent-",  # our agents (worker/job.py), and those that LiveKit names
    "sip_",  # callers, and phones dialled without an identity of their own
    HUMAN_PREFIX,
)


def _a_persons(identity: str) -> str:
    # Case-insensitive: people would mistake a look-alike for the real one.
    if identity.strip().casefold().startswith(_RESERVED):
        raise ValueError(f"must not begin as a phone's or an agent's ({', '.join(_RESERVED)})")
    return identity


PersonsIdentity = Annotated[Name, AfterValidator(_a_persons)]
"""An identity that no caller, agent or transfer's human ever has.

A phone dialled by POST /sip/call may have any identity; that is checked against the room where the
token is signed (gateway.calls.rooms).
"""


def join_token(
    settings: Settings,
    claim: Claim,
    *,
    identity: str,
    name: str,
    sources: Sequence[str],
    data: bool,
    valid: timedelta,
    attributes: Mapping[str, str] | None = None,
) -> str:
    """Sign a token to join the claim's room, subscribe to all, and publish LiveKit's ``sources``.

    Its holder may not change their own metadata: attributes say whose leg a participant is.
    """
    assert settings.livekit_api_key is not None and settings.livekit_api_secret is not None
    grants = VideoGrants(
        room_join=True,
        room=claim.room_name,
        can_publish=True,
        can_publish_sources=list(sources),
        can_subscribe=True,
        can_publish_data=data,
        can_update_own_metadata=False,
    )
    return (
        AccessToken(settings.livekit_api_key, settings.livekit_api_secret.get_secret_value())
        .with_identity(identity)
        .with_name(name)
        .with_attributes(dict(attributes or {}))
        .with_grants(grants)
        .with_room_config(configuration(claim))
        .with_ttl(valid)
        .to_jwt()
    )

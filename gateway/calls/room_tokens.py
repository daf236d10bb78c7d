"""Tokens that people join rooms with: which identities they may carry, and what they may do."""

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
    "agent-",  # ours (worker/job.py), and those that LiveKit names
    "sip_",  # phones that call in, and those dialled without an identity of their own
    HUMAN_PREFIX,
)


def _a_persons(identity: str) -> str:
    # Whatever the case: it would be taken for one by those who read it.
    if identity.strip().casefold().startswith(_RESERVED):
        raise ValueError(f"must not begin as a phone's or an agent's ({', '.join(_RESERVED)})")
    return identity


PersonsIdentity = Annotated[Name, AfterValidator(_a_persons)]
"""One that is never a phone's, an agent's or that of a human who takes over a call.

The identity of a phone that POST /sip/call has dialled can be anything: whether there is one is
asked where the token is signed (gateway.calls.rooms).
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
    """To join the claim's room, hear everybody, and publish ``sources`` (LiveKit's track sources).

    Without leave to change what others are told of its holder: attributes say whose leg it is.
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

"""Requests and responses of the phone number paths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints
from pydantic.alias_generators import to_camel

from core.models import (
    CredentialProvider,
    Model,
    NumberDirection,
    NumberStatus,
    NumberVia,
    PhoneNumber,
    Timestamp,
)
from gateway.http.body import documented
from gateway.http.paging import Listing, Page
from gateway.numbers.service import Search
from gateway.numbers.twilio import AvailableNumber

UNSERVED = frozenset({"type", "imessageType", "externalId", "expiresAt"})
"""Fields of ``POST /v1/numbers`` that agentphone clients send and that are not implemented."""

Ref = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]
E164 = Annotated[str, StringConstraints(strict=True, max_length=32)]
Country = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Z]{2}$")]
AreaCode = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9]{2,5}$")]
Place = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=100)]


VIA = (
    "sip: calls come in by the SIP service; stream: as Twilio's Media Streams, at PUBLIC_URL "
    "(twilio only). Outbound calls are the same."
)

RECORD = "Record the calls that come in, while the agent's recording is enabled."


class _Request(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=False, extra="forbid")


class AttachRequest(_Request):
    """A number that you already have."""

    provider: CredentialProvider
    phone_number: E164 = Field(description="E.164.", examples=["+14155550123"])
    credentials_ref: Ref | None = Field(
        None,
        description="A credential's name or id; may be left out for sip.",
        examples=["TWILIO_ACME"],
    )
    agent_id: Ref | None = Field(None, description="The agent that answers; null: none yet.")
    direction: NumberDirection = "both"
    via: NumberVia = Field("sip", description=VIA)
    record: StrictBool = Field(False, description=RECORD)


class ChangeRequest(_Request):
    """Missing fields keep their value."""

    agent_id: Ref | None = Field(None, description="null: unbind the number from its agent.")
    direction: NumberDirection = Field("both", description="No default; if missing, unchanged.")
    via: NumberVia = Field("sip", description=f"{VIA} No default; if missing, unchanged.")
    record: StrictBool = Field(False, description=f"{RECORD} No default; if missing, unchanged.")


class NumberPage(Page):
    status: NumberStatus | None = Field(None, description="Only numbers in this state.")


class AvailableQuery(_Request):
    country: Country = "US"
    area_code: AreaCode | None = Field(None, description="US and CA only.")
    city: Place | None = None
    state: Place | None = None
    zip: Place | None = None
    limit: int = Field(20, ge=1, le=50)
    credentials_ref: Ref | None = Field(
        None, description="The Twilio account; may be left out if there is only one."
    )

    def search(self) -> Search:
        return Search(
            country=self.country,
            area_code=self.area_code,
            city=self.city,
            state=self.state,
            postal_code=self.zip,
            limit=self.limit,
        )


class _Buy(_Request):
    country: Country = "US"
    area_code: AreaCode | None = Field(None, description="US and CA only.")
    phone_number: E164 | None = Field(None, description="Buy this available number.")
    agent_id: Ref | None = None
    record: StrictBool = Field(False, description=RECORD)

    def search(self) -> Search:
        return Search(country=self.country, area_code=self.area_code)


class BuyRequest(_Buy):
    """Buys in your Twilio account, at Twilio's price."""

    credentials_ref: Ref
    via: NumberVia = Field("sip", description=VIA)


class NumberCreate(_Buy):
    """Buys in your Twilio account, at Twilio's price; ``credentialsRef`` may be left out if there
    is only one."""

    model_config = ConfigDict(json_schema_extra=documented(UNSERVED))

    credentials_ref: Ref | None = None


class BindRequest(_Request):
    number_id: Ref


class NumberView(Model):
    """A phone number."""

    id: str
    phone_number: str
    country: str = Field(description="ISO 3166-1 alpha-2; ZZ: no country, as for +800.")
    status: NumberStatus = Field(
        description="pending: claimed by a tenant, not approved yet; no calls in either direction."
    )
    type: Literal["voice"] = "voice"
    agent_id: str | None
    provider: CredentialProvider
    credentials_ref: str | None = Field(description="The credential's name.")
    direction: NumberDirection
    via: NumberVia
    record: bool
    inbound_calls_enabled: bool
    auth_id: str | None = Field(description="The tenant that owns or claims it; null: operator.")
    created_at: Timestamp

    @classmethod
    def of(cls, number: PhoneNumber, names: dict[str, str]) -> NumberView:
        """Return the view of ``number``; ``names`` are those of credentials, by id."""
        return cls(
            id=number.id,
            phone_number=number.phone_number,
            country=number.country,
            status=number.status,
            agent_id=number.agent_id,
            provider=number.provider,
            credentials_ref=names.get(number.credential_id or ""),
            direction=number.direction,
            via=number.via,
            record=number.record,
            inbound_calls_enabled=number.direction != "outbound" and number.status != "pending",
            auth_id=number.auth_id,
            created_at=number.created_at,
        )


class NumberList(Listing[NumberView]):
    pass


class NumberGone(Model):
    success: Literal[True] = True
    id: str
    phone_number: str
    status: Literal["detached", "released"] = Field(
        description="released: returned to Twilio; detached: still yours at the provider."
    )

    @classmethod
    def of(cls, number: PhoneNumber, *, released: bool) -> NumberGone:
        status: Literal["detached", "released"] = "released" if released else "detached"
        return cls(id=number.id, phone_number=number.phone_number, status=status)


class BoundNumber(Model):
    id: str
    phone_number: str
    status: str
    type: Literal["voice"] = "voice"


class Binding(Model):
    """The number that was bound to the agent, or unbound from it."""

    agent_id: str
    number: BoundNumber

    @classmethod
    def of(cls, agent_id: str, number: PhoneNumber) -> Binding:
        bound = BoundNumber(id=number.id, phone_number=number.phone_number, status=number.status)
        return cls(agent_id=agent_id, number=bound)


class AvailableList(Model):
    data: list[AvailableNumber]

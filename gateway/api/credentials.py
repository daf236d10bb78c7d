"""``/api/v1/credentials``: a tenant's named secrets. Created, listed, deleted; never shown."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, Self

import phonenumbers
from aiohttp import web
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic.alias_generators import to_camel

from core.errors import AppError, Conflict, Detail
from core.models import CredentialProvider, Model, Timestamp
from gateway.api import faults
from gateway.http.body import invalid, parse_json, parse_query, read_body, validate
from gateway.http.envelope import Envelope, envelope, page
from gateway.http.idempotency import once
from gateway.http.paging import Page
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import CREDENTIALS, SIP_GUARD, STORE
from gateway.numbers.accounts import not_found
from gateway.store.credentials import Credential, InUse, NameTaken, Secret, SipSecret, TwilioSecret
from gateway.store.database import Scope
from sip.addresses import parse_outbound_address
from sip.guard import AddressRefused


def _address(value: str) -> str:
    try:
        return str(parse_outbound_address(value))
    except AppError as error:
        raise ValueError(error.message) from None


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError("must be an IP address or a network like 203.0.113.0/24") from None


def _country(value: str) -> str:
    if value not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError("must be a country's code (ISO 3166-1 alpha-2)")
    return value


def _not_an_id(value: str) -> str:
    if value.startswith("cred_"):
        raise ValueError("must not begin like an id (cred_)")
    return value


Name = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    AfterValidator(_not_an_id),
]
HostPort = Annotated[str, StringConstraints(strict=True, max_length=300), AfterValidator(_address)]
Network = Annotated[str, StringConstraints(strict=True, max_length=64), AfterValidator(_network)]
Country = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[A-Z]{2}$"), AfterValidator(_country)
]
# Both are sent in a SIP or an HTTP header, so characters that could end it are not allowed.
Username = Annotated[str, StringConstraints(strict=True, pattern=r'^[^\x00-\x20"\\\x7f]{1,256}$')]
Password = Annotated[SecretStr, Field(min_length=1, max_length=256, strict=True)]


class _Body(Secret):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=False, extra="forbid")

    name: Name = Field(description="The name for credentialsRef.", examples=["TWILIO_ACME"])

    def secret(self) -> dict[str, Any]:
        """Return the fields to seal."""
        whole = self.reveal()
        return {key: value for key, value in whole.items() if key not in {"name", "provider"}}


class TwilioBody(_Body, TwilioSecret):
    """A Twilio account; ``sipAddress`` is the termination of its Elastic SIP trunk."""

    provider: Literal["twilio"]
    account_sid: str = Field(strict=True, pattern=r"^AC[0-9a-fA-F]{32}$")
    auth_token: Password
    sip_address: HostPort | None = Field(None, examples=["acme.pstn.twilio.com"])
    username: Username | None = None
    password: Password | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _check_login(self.username, self.password)
        if self.username is not None and self.sip_address is None:
            raise ValueError("username and password need a sipAddress")
        return self


class SipBody(_Body, SipSecret):
    """Any SIP trunk: where calls go out, and which addresses may send calls in."""

    provider: Literal["sip"]
    address: HostPort = Field(examples=["sip.example.com:5060"])
    username: Username | None = None
    password: Password | None = None
    allowed_addresses: list[Network] = Field(
        default_factory=list, max_length=64, examples=[["203.0.113.0/24"]]
    )
    country: Country | None = Field(
        None, description="Country of its national numbers, ISO 3166-1 alpha-2.", examples=["US"]
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _check_login(self.username, self.password)
        return self


class CredentialRequest(
    RootModel[Annotated[TwilioBody | SipBody, Field(discriminator="provider")]]
):
    pass


class _Kind(BaseModel):
    provider: CredentialProvider


class CredentialView(Model):
    id: str
    name: str
    provider: CredentialProvider
    created_at: Timestamp

    @classmethod
    def of(cls, credential: Credential) -> CredentialView:
        return cls(**credential.model_dump())


async def create(request: web.Request) -> web.StreamResponse:
    """Store a secret under a name. It is encrypted at rest and never returned."""
    principal = request[PRINCIPAL]
    raw = parse_json(await read_body(request))
    # Validate the kind first; otherwise a wrong one would yield errors for every kind's fields.
    kind = validate(raw, _Kind, request.path).provider
    body: TwilioBody | SipBody
    if kind == "twilio":
        body = validate(raw, TwilioBody, request.path)
    else:
        body = validate(raw, SipBody, request.path)
    if principal.auth_id is not None:
        _check_address(body, request)
    store = request.app[CREDENTIALS]

    async def effect() -> dict[str, Any]:
        scope = Scope(principal.auth_id)
        try:
            made = await store.create(scope, body.name, body.provider, body.secret())
        except NameTaken:
            raise Conflict(
                "A credential with this name already exists", code="CREDENTIAL_EXISTS"
            ) from None
        return envelope(CredentialView.of(made), "Credential kept").wire()

    return await once(request, request.app[STORE], principal, body, effect, status=201)


async def index(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, Page)
    found, total = await request.app[CREDENTIALS].page(
        scope_of(request), limit=query.limit, offset=query.offset
    )
    views = [CredentialView.of(credential) for credential in found]
    return page(views, total, limit=query.limit, offset=query.offset).response()


async def show(request: web.Request) -> web.StreamResponse:
    """Find a credential by id or name."""
    scope = scope_of(request)
    found = await request.app[CREDENTIALS].get(scope, request.match_info["ref"])
    if found is None:
        raise not_found()
    return envelope(CredentialView.of(found)).response()


async def remove(request: web.Request) -> web.StreamResponse:
    """Delete by id or name. A credential with which a number is attached cannot be deleted."""
    scope = scope_of(request)
    try:
        gone = await request.app[CREDENTIALS].delete(scope, request.match_info["ref"])
    except InUse:
        raise Conflict(
            "A phone number is attached with this credential", code="CREDENTIAL_IN_USE"
        ) from None
    if gone is None:
        raise not_found()
    return envelope(CredentialView.of(gone), "Credential deleted").response()


def _check_address(body: TwilioBody | SipBody, request: web.Request) -> None:
    """Check an IP address now; host names are resolved at each call. Raises Unprocessable."""
    if isinstance(body, SipBody):
        field, address, tls = "address", body.address, body.transport == "tls"
    else:
        field, address, tls = "sipAddress", body.sip_address or "", False
    if not address:
        return
    try:
        request.app[SIP_GUARD].check_literal(address, tls=tls)
    except AddressRefused as refused:
        fault = Detail(field, refused.message, "address_refused")
        raise invalid([fault], request.path) from None


def _check_login(username: str | None, password: SecretStr | None) -> None:
    if (username is None) != (password is None):
        raise ValueError("username and password belong together")


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /api/v1/credentials",
        create,
        "Store a provider's secret under a name",
        body=CredentialRequest,
        answer=Envelope[CredentialView],
        status=201,
        errors=((409, "CREDENTIAL_EXISTS"), faults.STORE),
        idempotent=True,
    ),
    Route(
        "GET /api/v1/credentials",
        index,
        "List credentials, newest first, without their secrets",
        query=Page,
        answer=Envelope[list[CredentialView]],
        errors=(faults.STORE,),
    ),
    Route(
        "GET /api/v1/credentials/{ref}",
        show,
        "One credential, without its secret",
        answer=Envelope[CredentialView],
        errors=(faults.NO_CREDENTIAL, faults.STORE),
    ),
    Route(
        "DELETE /api/v1/credentials/{ref}",
        remove,
        "Delete a credential that no number is attached with",
        answer=Envelope[CredentialView],
        errors=(faults.NO_CREDENTIAL, (409, "CREDENTIAL_IN_USE"), faults.STORE),
    ),
)

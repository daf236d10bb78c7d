"""``/v1/recordings/export``: copy recordings to a bucket."""

from __future__ import annotations

from typing import Any, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from pydantic.alias_generators import to_camel

from core.errors import Detail, Forbidden, NotFound, TooManyRequests, Unprocessable
from core.models import Model, Timestamp, new_id
from core.url_guard import UrlRefused, check_url
from gateway.api import faults
from gateway.fields.times import UtcTime
from gateway.http.body import parse_body
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Fault, Route
from gateway.keys import CLOCK, EXPORTER, EXPORTS, SETTINGS, STORE
from gateway.recordings.destinations import TenantBucket, allowed
from gateway.store.recordings.exports import MAX_WAITING, Export, ExportStatus, TooManyExports

_NOT_ALLOWED: Fault = (403, "EXPORT_DESTINATION_NOT_ALLOWED")
_NO_EXPORT: Fault = (404, "EXPORT_NOT_FOUND")
_LIMIT: Fault = (429, "EXPORT_LIMIT")
_RETRY_S = 60


class CreateExport(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    since: UtcTime | None = Field(None, description="Of the first recording; default: all.")
    until: UtcTime | None = Field(None, description="Default, and latest: now.")
    destination: StrictStr | TenantBucket = Field(
        description="An address below one of RECORDINGS_EXPORT_URLS, or a bucket with credentials.",
    )


class ExportView(Model):
    """A job, and how far it is."""

    id: str = Field(examples=["export_…"])
    status: ExportStatus
    failure: str | None = Field(description="Why it failed, or why it waits.")
    since: Timestamp | None
    until: Timestamp
    destination: str
    total: int = Field(description="Recordings when the job was accepted.")
    done: int = Field(description="Recordings that are at the destination.")
    failed: int = Field(description="Recordings that could not be read, or whose name is taken.")
    created_at: Timestamp
    ended_at: Timestamp | None

    @classmethod
    def of(cls, job: Export) -> Self:
        shown = job.model_dump(include=set(cls.model_fields))
        return cls(**{**shown, "destination": job.destination.partition("?")[0]})


async def create(request: web.Request) -> web.StreamResponse:
    """Accept a job. The recordings are copied after the response."""
    principal = request[PRINCIPAL]
    body = await parse_body(request, CreateExport)
    moment = request.app[CLOCK]()
    until = moment if body.until is None else min(body.until, moment)
    if body.since is not None and body.since >= until:
        raise _invalid("since", "must be before until and now")
    address = _address(request, body.destination, operator=principal.auth_id is None)

    async def effect() -> dict[str, Any]:
        secret = body.destination.reveal() if isinstance(body.destination, TenantBucket) else None
        job = Export(
            id=new_id("export"),
            auth_id=principal.auth_id,
            since=body.since,
            until=until,
            destination=address,
            created_at=moment,
            due_at=moment,
        )
        try:
            job = await request.app[EXPORTS].add(job, secret)
        except TooManyExports:
            raise TooManyRequests(
                f"{MAX_WAITING} of your exports have not ended",
                code=_LIMIT[1],
                retry_after_s=_RETRY_S,
            ) from None
        request.app[EXPORTER].bell.set()
        return ExportView.of(job).wire()

    return await once(request, request.app[STORE], principal, body, effect, status=202)


def _address(request: web.Request, destination: str | TenantBucket, *, operator: bool) -> str:
    settings = request.app[SETTINGS]
    if isinstance(destination, str):
        address = allowed(destination, settings, operator=operator)
        if address is None:
            raise Forbidden(
                "The destination is not one of RECORDINGS_EXPORT_URLS, nor below one",
                code=_NOT_ALLOWED[1],
            )
        return address
    if destination.endpoint is not None and not settings.webhook_allow_private:
        try:
            check_url(destination.base)
        except UrlRefused as error:
            raise _invalid("destination.endpoint", str(error)) from None
        if not destination.base.startswith("https://"):
            raise _invalid("destination.endpoint", "must be an https:// address")
    return destination.url


async def read(request: web.Request) -> web.StreamResponse:
    job = await request.app[EXPORTS].find(scope_of(request), request.match_info["id"])
    if job is None:
        raise NotFound("Export not found", code=_NO_EXPORT[1])
    return web.json_response(ExportView.of(job).wire())


def _invalid(field: str, reason: str) -> Unprocessable:
    return Unprocessable("Invalid request", details=[Detail(field, reason, "value_error")])


ROUTES = (
    Route(
        "POST /v1/recordings/export",
        create,
        "Copy recordings to a bucket",
        body=CreateExport,
        answer=ExportView,
        status=202,
        errors=(_NOT_ALLOWED, _LIMIT, faults.STORE),
        idempotent=True,
    ),
    Route(
        "GET /v1/recordings/export/{id}",
        read,
        "Progress of an export",
        answer=ExportView,
        errors=(_NO_EXPORT, faults.STORE),
    ),
)

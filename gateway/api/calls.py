"""``/v1/calls``: the record of calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
)

from core.errors import NotFound
from core.models import Direction, Status
from gateway.api import faults
from gateway.api.recordings.opening import recordings_of
from gateway.api.waiting import until_over
from gateway.calls.views import NO_RECORDING, CallDetail, CallList, CallView, Transcript
from gateway.diagnosis.diagnose import Diagnosis, diagnose
from gateway.fields.times import UtcTime
from gateway.http.accept import preferred
from gateway.http.body import parse_query
from gateway.http.paging import Page
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import AGENTS, NUMBERS, STORE, STREAMS
from gateway.store.call_rows import CallFilter
from gateway.store.call_status import Call, CallType
from gateway.transcripts import text_formats

MAX_WAIT_S = 600

_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _rfc3339(value: Any) -> Any:
    # pydantic would read "20" as twenty seconds after 1970-01-01.
    if isinstance(value, str) and not _RFC3339.fullmatch(value):
        raise ValueError("must be an RFC 3339 time, like 2026-01-31T12:00:00Z")
    return value


Moment = Annotated[UtcTime, BeforeValidator(_rfc3339)]


class CallQuery(Page):
    status: Status | None = None
    direction: Direction | None = None
    type: CallType | None = None
    agent_id: str | None = Field(None, min_length=1, max_length=64)
    number_id: str | None = Field(None, min_length=1, max_length=64)
    search: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="A part of the calling or the called number, or a call's whole id.",
    )
    since: Moment | None = Field(None, description="Only calls created then or later.")
    until: Moment | None = Field(None, description="Only calls created before then.")

    @field_validator("search")
    @classmethod
    def _without_blanks(cls, value: str | None) -> str | None:
        # The unescaped + of a number arrives as a space.
        if value is not None and not (value := value.strip()):
            raise ValueError("must not be blank")
        return value


class CallWait(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait: bool = Field(False, description="Respond when the call has ended, or after timeout.")
    timeout: float = Field(30, ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="Seconds.")


_FORMATS = {"json": "application/json", "vtt": "text/vtt", "txt": "text/plain"}
AS_TEXT = (_FORMATS["vtt"], _FORMATS["txt"])
"""The types of a transcript that are not JSON."""


class TranscriptQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["json", "vtt", "txt"] | None = Field(
        None, description="JSON, WebVTT or plain text; without it, Accept decides."
    )


async def index(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, CallQuery)
    where = CallFilter(
        statuses=[query.status] if query.status else [],
        direction=query.direction,
        type=query.type,
        agent_id=query.agent_id,
        phone_number_id=query.number_id,
        search=query.search,
        since=query.since,
        until=query.until,
    )
    return await _listed(request, query, where)


async def of_agent(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, Page)
    agent_id = request.match_info["id"]
    await request.app[AGENTS].require(scope_of(request), agent_id)
    return await _listed(request, query, CallFilter(agent_id=agent_id))


async def of_number(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, Page)
    number_id = request.match_info["id"]
    if await request.app[NUMBERS].get(scope_of(request), number_id) is None:
        raise NotFound("Phone number not found", code="NUMBER_NOT_FOUND")
    return await _listed(request, query, CallFilter(phone_number_id=number_id))


async def show(request: web.Request) -> web.StreamResponse:
    """With ``wait=true``, the response is sent when the call has ended, or after ``timeout``."""
    query = parse_query(request, CallWait)
    call = await find(request)
    if query.wait:
        with request.app[STREAMS].one(request[PRINCIPAL].auth_id):
            call = await until_over(request, call, query.timeout)
    return web.json_response((await detail(request, call)).wire())


async def transcript(request: web.Request) -> web.StreamResponse:
    """The type is chosen by `format`, else by `Accept`; JSON by default. WebVTT has a cue for each
    turn of caller and agent, or several if it is long.
    """
    return await in_format(request, lambda found: web.json_response(found.wire()))


async def in_format(
    request: web.Request, as_json: Callable[[Transcript], web.Response]
) -> web.Response:
    """Return the transcript of the call named in the path, as the client wants it."""
    query = parse_query(request, TranscriptQuery)
    accepted = preferred(request.headers.get("Accept"), tuple(_FORMATS.values()))
    found = await conversation(request)
    chosen = _FORMATS[query.format] if query.format else accepted
    if chosen == _FORMATS["json"]:
        response = as_json(found)
    else:
        render = text_formats.vtt if chosen == _FORMATS["vtt"] else text_formats.text
        response = web.Response(
            text=render(found.transcripts), content_type=chosen, charset="utf-8"
        )
    response.headers["Vary"] = "Accept"
    return response


async def diagnosis(request: web.Request) -> web.StreamResponse:
    """A call in progress is diagnosed as far as it has come. `timeline` has no words, keys or
    numbers; its SIP methods are inferred from the events.
    """
    call = await find(request)
    events = await request.app[STORE].events(call.id)
    return web.json_response(diagnose(call, events).wire())


async def find(request: web.Request) -> Call:
    """Return the call named in the path. Raises NotFound, also for another tenant's call."""
    call = await request.app[STORE].call(scope_of(request), request.match_info["id"])
    if call is None:
        raise NotFound("Call not found", code="CALL_NOT_FOUND")
    return call


async def detail(request: web.Request, call: Call) -> CallDetail:
    """Return ``call`` with its conversation so far."""
    turns = await request.app[STORE].turns(call.id)
    recorded = await recordings_of(request, [call.id])
    return CallDetail.with_turns(call, turns, recorded.get(call.id, NO_RECORDING))


async def conversation(request: web.Request) -> Transcript:
    """Return the transcript of the call named in the path. Raises NotFound."""
    call = await find(request)
    turns = await request.app[STORE].turns(call.id)
    return Transcript(call_id=call.id, status=call.status, transcripts=turns)


async def _listed(request: web.Request, query: Page, where: CallFilter) -> web.Response:
    store = request.app[STORE]
    found, total = await store.calls(
        scope_of(request), where, limit=query.limit, offset=query.offset
    )
    last = await store.last_turns([call.id for call in found])
    recorded = await recordings_of(request, [call.id for call in found])
    views = [
        CallView.of(call, last.get(call.id), recorded.get(call.id, NO_RECORDING)) for call in found
    ]
    return web.json_response(CallList.of(views, total, query).wire())


ROUTES: tuple[Route, ...] = (
    Route("GET /v1/calls", index, "List calls, newest first", query=CallQuery, answer=CallList),
    Route(
        "GET /v1/calls/{id}",
        show,
        "One call, with its transcript",
        query=CallWait,
        answer=CallDetail,
        errors=(faults.NO_CALL, faults.STREAM_LIMIT),
    ),
    Route(
        "GET /v1/calls/{id}/transcript",
        transcript,
        "A call's transcript, in order",
        query=TranscriptQuery,
        answer=Transcript,
        also=AS_TEXT,
        errors=(faults.NO_CALL,),
    ),
    Route(
        "GET /v1/calls/{id}/diagnosis",
        diagnosis,
        "Why a call failed: its cause, evidence and remedy, and one timeline of all parts",
        answer=Diagnosis,
        errors=(faults.NO_CALL,),
    ),
    Route(
        "GET /v1/agents/{id}/calls",
        of_agent,
        "An agent's calls, newest first",
        query=Page,
        answer=CallList,
        errors=(faults.NO_AGENT,),
    ),
    Route(
        "GET /v1/numbers/{id}/calls",
        of_number,
        "A number's calls, newest first",
        query=Page,
        answer=CallList,
        errors=(faults.NO_NUMBER,),
    ),
)

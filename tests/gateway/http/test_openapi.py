from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import validate
from pydantic import BaseModel, Field

import gateway.api
from gateway.http.openapi import build, documents
from gateway.http.route import Route
from gateway.routes import ROUTES
from gateway.store.call_status import Call
from tests.support.edge import make_app, served

pytestmark = pytest.mark.unit


class Trunk(BaseModel):
    host: str = Field(description="`hostname` & <port>")


class Order(BaseModel):
    name: str
    trunk: Trunk | None = None


class Filter(BaseModel):
    limit: int = Field(20, ge=1, le=100, description="At most.")
    status: str | None = None


async def handler(_request: web.Request) -> web.Response:
    """What it does."""
    return web.Response()


def route(endpoint: str, **more: Any) -> Route:
    return Route(endpoint, handler, "s", tag="t", **more)


EXAMPLES = (
    route(
        "POST /sip/orders",
        body=Order,
        answer=Order,
        idempotent=True,
        errors=((404, "ROOM_NOT_FOUND"), (404, "AGENT_NOT_FOUND")),
    ),
    route(r"GET /v1/calls/{id:[a-z_]+}", answer=Call, errors=((404, "CALL_NOT_FOUND"),)),
    route("GET /v1/calls", query=Filter),
    route("POST /api/v1/sessions", body=Order, status=202, public=True),
    route("DELETE /api/v1/sessions/{id}", status=204),
    route("GET /v1/calls/{id}/events", content="text/event-stream"),
    route("GET /internal/x", internal=True),
)


def test_the_gateways_own_document_is_valid() -> None:
    document = build(ROUTES)
    validate(document)
    served_paths = {re.sub(r":[^}]*", "", r.path) for r in ROUTES if not r.internal}
    assert set(document["paths"]) == served_paths


def test_every_route_is_in_a_chapter_and_names_each_error_once() -> None:
    for each in ROUTES:
        assert each.tag, each.endpoint
        assert len(set(each.errors)) == len(each.errors), each.endpoint


def test_an_error_of_several_routes_is_named_in_one_place() -> None:
    """An error that several routes answer with is defined once, in ``gateway.api.faults``."""
    api = Path(gateway.api.__file__).parent
    text = "\n".join(path.read_text() for path in api.glob("*.py"))
    named = Counter(re.findall(r'\([1-5][0-9]{2}, "[A-Z_]+"\)', text))
    assert named
    assert [fault for fault, times in named.items() if times > 1] == []


def test_operation_ids_are_unique() -> None:
    document = build(ROUTES)
    ids = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(ids) == len(set(ids))


def test_the_document_says_what_a_route_says() -> None:
    document = build(EXAMPLES)
    validate(document)
    paths = document["paths"]
    assert "/internal/x" not in paths
    create = paths["/sip/orders"]["post"]
    assert create["description"] == "What it does."
    assert create["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Order"
    }
    assert [p["name"] for p in create["parameters"]] == ["Idempotency-Key"]
    assert create["security"] == [{"bearer": []}]
    assert create["responses"]["404"]["description"] == "`ROOM_NOT_FOUND`, `AGENT_NOT_FOUND`"
    assert {"200", "400", "401", "404", "409", "413", "415", "500"} <= set(create["responses"])
    assert "422" not in create["responses"]
    assert "security" not in paths["/api/v1/sessions"]["post"]
    assert set(paths["/api/v1/sessions"]["post"]["responses"]) >= {"202", "422"}
    assert "content" not in paths["/api/v1/sessions/{id}"]["delete"]["responses"]["204"]
    one = paths["/v1/calls/{id}"]["get"]
    assert one["parameters"][0] == {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
    }
    limit = paths["/v1/calls"]["get"]["parameters"][0]
    assert (limit["in"], limit["required"], limit["schema"]["maximum"]) == ("query", False, 100)
    stream = paths["/v1/calls/{id}/events"]["get"]["responses"]["200"]["content"]
    assert list(stream) == ["text/event-stream"]


@pytest.mark.parametrize(
    ("path", "method", "shape"),
    [
        ("/sip/orders", "post", "FlatError"),
        ("/v1/calls", "get", "NestedError"),
        ("/api/v1/sessions", "post", "EnvelopeError"),
    ],
)
def test_errors_have_the_shape_of_their_path(path: str, method: str, shape: str) -> None:
    responses = build(EXAMPLES)["paths"][path][method]["responses"]
    for status, response in responses.items():
        if status >= "400":
            schema = response["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{shape}"}


def test_answers_are_described_as_they_are_written() -> None:
    properties = build(EXAMPLES)["components"]["schemas"]["Call"]["properties"]
    assert "sipStatusCode" in properties and "sip_status_code" not in properties
    assert properties["createdAt"]["type"] == "string"


def test_without_auth_a_token_is_optional() -> None:
    document = build(EXAMPLES, auth_required=False)
    assert document["paths"]["/sip/orders"]["post"]["security"] == [{"bearer": []}, {}]


async def test_both_are_served_without_a_token_and_load_nothing() -> None:
    async with served(make_app(documents(EXAMPLES))) as at:
        async with at.http.get("/openapi.json") as response:
            assert response.content_type == "application/json"
            document = await response.json()
        async with at.http.get("/docs") as response:
            assert response.content_type == "text/html"
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            html = await response.text()
    validate(document)
    assert {"/openapi.json", "/docs"} <= set(document["paths"])
    for path, item in document["paths"].items():
        assert path in html
        for operation in item.values():
            assert f'id="{operation["operationId"]}"' in html
    assert "<code>hostname</code> &amp; &lt;port&gt;" in html
    assert not re.search(r"<script|src=|@import|url\(|https?://", html)

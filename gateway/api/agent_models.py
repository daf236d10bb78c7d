"""Requests and responses of ``/v1/agents``: the agent's configuration, flat, with its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from types import GenericAlias
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, StrictInt, create_model
from pydantic.alias_generators import to_camel

from core.errors import Detail
from core.models import (
    AgentConfig,
    CustomTool,
    McpServer,
    Model,
    NumberStatus,
    PhoneNumber,
    Timestamp,
)
from core.recordings.config import Consent, Disclosure, Recording, Redaction, switchable
from core.tools import schema as tool_schema
from core.url_guard import UrlRefused, check_url
from gateway.http.body import documented, invalid, validate
from gateway.http.paging import Listing
from gateway.store.agents import AgentRecord, AgentVersion

UNSERVED = frozenset(
    {
        "sttMode",
        "denoisingMode",
        "enableMessaging",
        "enableBackchannel",
        "callScreeningIdentity",
        "callScreeningPurpose",
    }
)
"""Fields that clients of similar products send and that are not implemented yet."""

DEFAULT_VOICE = "default"
"""The TTS's default voice. Clients need a string for ``voice``, which is null in AgentConfig."""


class _Inner(Model):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Create(Model):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=documented(UNSERVED))


def _patch_schema(schema: dict[str, Any]) -> None:
    documented(UNSERVED)(schema)
    for property_ in schema["properties"].values():
        # A missing field keeps its value, so it has no default.
        property_.pop("default", None)


class _Patch(Model):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_patch_schema)


def _nullable(
    name: str, model: type[Model], base: type[Model], *, optional: bool = False
) -> type[Model]:
    """Return ``model`` with null allowed in every field that has a default.

    ``optional``: the other fields may be missing.
    """
    fields: dict[str, Any] = {}
    for field, info in model.model_fields.items():
        changed = copy(info)
        kind: Any = info.annotation
        if model is AgentConfig and field in _INNER:
            kind = GenericAlias(list, _INNER[field])
        if model is AgentConfig and field in _PARTS:
            kind, changed.metadata = _PARTS[field] | None, []
        elif not info.is_required():
            # The constraints apply to values, not to null.
            kind = Annotated[kind, *info.metadata] | None if info.metadata else kind | None
            changed.metadata = []
        elif optional:
            changed.default = None
        changed.annotation = kind
        fields[field] = (kind, changed)
    return create_model(name, __base__=base, __module__=__name__, **fields)


_INNER = {
    "custom_tools": _nullable("AgentTool", CustomTool, _Inner),
    "mcp_servers": _nullable("AgentMcpServer", McpServer, _Inner),
}
_Switch = _nullable("AgentRecording", Recording, _Inner)
_PARTS: dict[str, Any] = {
    "recording": Annotated[_Switch, switchable(_Switch)],
    "disclosure": _nullable("AgentDisclosure", Disclosure, _Inner),
    "consent": _nullable("AgentConsent", Consent, _Inner),
    "redaction": _nullable("AgentRedaction", Redaction, _Inner),
}
"""Objects of which a request may name some fields; the others keep their values."""
AgentCreate = _nullable("AgentCreate", AgentConfig, _Create)
AgentPatch = _nullable("AgentPatch", AgentConfig, _Patch, optional=True)


class AgentTools(Protocol):
    """The tools in AgentCreate and AgentPatch."""

    custom_tools: Sequence[Any] | None
    mcp_servers: Sequence[Any] | None


class Rollback(Model):
    model_config = ConfigDict(extra="forbid")

    version: StrictInt = Field(ge=1, le=2**31 - 1)


def check_tools(body: AgentTools, path: str, *, allow_private: bool) -> None:
    """Check a request's tools beyond what their models check. Raises Unprocessable."""
    faults: list[Detail] = []
    tools, servers = body.custom_tools or [], body.mcp_servers or []
    for index, tool in enumerate(tools):
        if tool.parameters is not None:
            try:
                tool_schema.check_parameters(tool.parameters)
            except ValueError as error:
                place = f"customTools.{index}.parameters"
                faults.append(Detail(place, str(error), "json_schema"))
    if not allow_private:
        urls = {f"customTools.{index}.url": tool.url for index, tool in enumerate(tools)}
        urls |= {f"mcpServers.{index}.url": server.url for index, server in enumerate(servers)}
        for place, url in urls.items():
            try:
                check_url(url)
            except UrlRefused as refused:
                faults.append(Detail(place, str(refused), "url_refused"))
    if faults:
        raise invalid(faults, path)


def changed_config(body: BaseModel, before: AgentConfig | None, path: str) -> AgentConfig:
    """Return ``before``, or the defaults, with the changes in ``body``.

    Missing fields keep their value, also those of recording, disclosure, consent and redaction;
    null resets to the default. Raises Unprocessable.
    """
    given = body.model_dump(exclude_unset=True, by_alias=True)
    if given.get("voice") == DEFAULT_VOICE:
        given["voice"] = None
    for inner in map(to_camel, _INNER):
        if given.get(inner) is not None:
            given[inner] = [_without_nulls(each) for each in given[inner]]
    old = {} if before is None else before.model_dump(by_alias=True)
    for part in map(to_camel, _PARTS):
        if given.get(part) is not None:
            given[part] = _merged(old.get(part, {}), given[part])
    return validate(_merged(old, given), AgentConfig, path)


def _merged(old: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in old.items() if name not in given}
    return {**kept, **_without_nulls(given)}


def _without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


class AgentNumber(Model):
    id: str
    phone_number: str
    status: NumberStatus
    type: str = Field("voice", description="Always voice.")


class _Named(Model):
    id: str


class AgentView(AgentConfig, _Named):
    """An agent in its current version."""

    voice: str = Field(description=f"`{DEFAULT_VOICE}`: the TTS's default voice.")
    version: int
    numbers: list[AgentNumber]
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, record: AgentRecord, numbers: Iterable[PhoneNumber]) -> AgentView:
        """Return the view of ``record``; ``numbers`` may include other agents' numbers."""
        return cls(
            **_shown(record.config),
            id=record.id,
            version=record.version,
            numbers=[
                AgentNumber(id=number.id, phone_number=number.phone_number, status=number.status)
                for number in numbers
                if number.agent_id == record.id
            ],
            created_at=record.created_at,
            updated_at=record.updated_at,
        )


class AgentList(Listing[AgentView]):
    pass


class VersionView(AgentConfig):
    """A version of an agent, and when it was created."""

    voice: str
    version: int
    created_at: Timestamp

    @classmethod
    def of(cls, version: AgentVersion) -> VersionView:
        shown = _shown(version.config)
        return cls(**shown, version=version.version, created_at=version.created_at)


class VersionList(Listing[VersionView]):
    pass


class AgentDeleted(Model):
    success: bool
    id: str
    name: str


class VoiceView(Model):
    id: str
    name: str
    provider: str
    description: str


class VoiceList(Model):
    data: list[VoiceView]


def _shown(config: AgentConfig) -> dict[str, Any]:
    return {**config.model_dump(), "voice": config.voice or DEFAULT_VOICE}

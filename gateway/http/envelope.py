"""Successful responses under ``/api/v1``: ``{"success": true, "data", "message", "meta"}``.

Errors are in gateway.http.errors. A route's ``answer`` is ``Envelope[View]``, or
``Envelope[list[View]]`` for a page. Its handler (or the effect given to ``once``) creates one with
``envelope`` or ``page``.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

T = TypeVar("T")


class Meta(BaseModel):
    """The position of a page in its list; empty for any other response."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    limit: int | None = None
    offset: int | None = None
    total: int | None = None
    has_more: bool | None = None


class Envelope(BaseModel, Generic[T]):
    success: Literal[True] = True
    data: T
    message: str = Field(examples=["OK"])
    meta: Meta = Field(default_factory=Meta)

    def wire(self) -> dict[str, Any]:
        """Return JSON-ready values; ``meta`` holds only the fields that are set."""
        whole = self.model_dump(mode="json", by_alias=True)
        whole["meta"] = self.meta.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return whole

    def response(self, status: int = 200) -> web.Response:
        return web.json_response(self.wire(), status=status)


def envelope(data: T, message: str = "OK") -> Envelope[T]:
    """Wrap one resource, or the effect of a request."""
    return Envelope(data=data, message=message)


def page(
    data: list[T], total: int, *, limit: int, offset: int, message: str = "OK"
) -> Envelope[list[T]]:
    """Wrap one page of a list of ``total`` resources."""
    more = offset + len(data) < total
    meta = Meta(limit=limit, offset=offset, total=total, has_more=more)
    return Envelope(data=data, message=message, meta=meta)

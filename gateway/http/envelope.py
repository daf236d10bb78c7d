"""Successes under ``/api/v1``: ``{"success": true, "data", "message", "meta"}``.

Their failures are in gateway.http.errors. A route's ``answer`` is ``Envelope[View]``, or
``Envelope[list[View]]`` for a page; its handler (or the effect given to ``once``) makes one
with ``envelope`` or ``page``.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

T = TypeVar("T")


class Meta(BaseModel):
    """Where a page stands in its list; empty for anything else."""

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
        """JSON-ready; ``meta`` holds only what it knows."""
        whole = self.model_dump(mode="json", by_alias=True)
        whole["meta"] = self.meta.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return whole

    def response(self, status: int = 200) -> web.Response:
        return web.json_response(self.wire(), status=status)


def envelope(data: T, message: str = "OK") -> Envelope[T]:
    """One thing, or the effect of a request."""
    return Envelope(data=data, message=message)


def page(
    data: list[T], total: int, *, limit: int, offset: int, message: str = "OK"
) -> Envelope[list[T]]:
    """One page of a list of ``total``."""
    more = offset + len(data) < total
    meta = Meta(limit=limit, offset=offset, total=total, has_more=more)
    return Envelope(data=data, message=message, meta=meta)

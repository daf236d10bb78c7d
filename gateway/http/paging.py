"""Pagination: the query that every list accepts, and the response that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from core.models import Model

T = TypeVar("T", bound=BaseModel)


class Page(BaseModel):
    """The query of every list."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    offset: int = Field(0, ge=0, le=1_000_000)


class Listing(Model, Generic[T]):
    """One page. Each resource subclasses it: ``class CallList(Listing[CallView])``."""

    data: list[T]
    has_more: bool
    total: int = Field(description="The number of items on all pages.")

    @classmethod
    def of(cls, data: Sequence[T], total: int, query: Page) -> Self:
        """Build the page that ``query`` asked for from its ``data`` and the ``total``."""
        return cls(data=list(data), has_more=query.offset + len(data) < total, total=total)

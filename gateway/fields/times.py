"""A time with its offset that can be told in UTC, wherever one comes in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be in the years 1 to 9999 of UTC") from None


UtcTime = Annotated[AwareDatetime, AfterValidator(_in_utc)]

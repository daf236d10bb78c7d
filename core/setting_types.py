"""The types of settings, as the environment writes them."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, StringConstraints


def _strict_bool(value: Any) -> Any:
    """Accept only true, false, 1 and 0, in any case: a typo must not disable a protection."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in {"true", "1"}:
        return True
    if isinstance(value, str) and value.strip().lower() in {"false", "0"}:
        return False
    raise ValueError("must be one of true, false, 1, 0")


StrictBool = Annotated[bool, BeforeValidator(_strict_bool)]


def comma_separated(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError("must be networks like 10.20.0.0/16, without host bits") from None


Network = Annotated[str, AfterValidator(_network)]
Country = Annotated[str, StringConstraints(to_upper=True, pattern=r"^[A-Za-z]{2}$")]
NumberPrefix = Annotated[str, StringConstraints(pattern=r"^\+?[0-9]{1,20}$")]

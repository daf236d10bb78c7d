"""What tests/test_schemathesis.py has schemathesis do before each request."""

from __future__ import annotations

import itertools
import re
from typing import Any

import schemathesis

_HEADER = "Idempotency-Key"
_count = itertools.count()


@schemathesis.hook
def before_call(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any], _kwargs: dict[str, Any]
) -> None:
    """Make most keys new ones.

    schemathesis gives one and the same to most requests, which would then only be told
    that it was used with another request.
    """
    key = case.headers.get(_HEADER)
    number = next(_count)
    if isinstance(key, str) and re.fullmatch(r"[ -~]{1,200}", key) and number % 5:
        case.headers[_HEADER] = f"{key}-{number}"

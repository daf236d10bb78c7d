"""What tests/gateway/api/test_schemathesis.py has schemathesis do before each request."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import schemathesis

_HEADER = "Idempotency-Key"
_AGENTS = re.findall(r'"(.*)"', Path("agents.dict").read_text())
_WEBHOOK = Path("webhook.txt").read_text()
_count = itertools.count()


@schemathesis.hook
def before_call(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any], _kwargs: dict[str, Any]
) -> None:
    number = next(_count)
    _renew_key(case, number)
    if isinstance(case.body, dict):
        _name_an_agent(case.body, number)
        if case.path.endswith(("/webhook", "/webhooks")):
            _lead_to_us(case.body)


def _renew_key(case: schemathesis.Case[Any], number: int) -> None:
    """Most requests come with the same key, and would only be told that it was used."""
    key = case.headers.get(_HEADER)
    if isinstance(key, str) and re.fullmatch(r"[ -~]{1,200}", key) and number % 5:
        case.headers[_HEADER] = f"{key}-{number}"


def _name_an_agent(body: dict[str, Any], number: int) -> None:
    """A call with an agent that does not exist is refused before anything else is looked at."""
    given = body.get("agentId")
    if isinstance(given, str) and 1 <= len(given) <= 64 and number % 3:
        body["agentId"] = _AGENTS[0]


def _lead_to_us(body: dict[str, Any]) -> None:
    """What is sent to a webhook must not be sent to whomever the fuzzer thought of."""
    given = body.get("url")
    if isinstance(given, str) and given.startswith(("http://", "https://")):
        body["url"] = _WEBHOOK

"""Malformed messages, made from a codec's valid ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

JSON_SCALARS = ["", "{", "}", "[]", "[1]", "null", "true", "1", '"x"', "NaN", "\0", "\ufeff{}"]
NOT_JSON = [
    "[" * 10_000,
    '{"a":' * 10_000,
    '{"a":' * 3_000 + "1" + "}" * 3_000,
    "[" * 5_000 + "]" * 5_000,
    "{'event': 'stop'}",
    '{"event": NaN}',
    '{"event": -Infinity}',
    '{"event": "sto\np"}',
    '{"event": "stop", "a": "\0"}',
    '{"event": "stop",}',
    '{"event": "stop"} {}',
    '{"event": "stop", "n": ' + "9" * 5_000 + "}",
    '{"event": "\\x"}',
    '{"event": "stop" /* */}',
]
# None of these is a name, a number or an object.
WRONG: list[Any] = [
    None,
    True,
    1.5,
    -1,
    [],
    ["1"],
    "\0",
    "a\0b",
    "\ud800",
    "\x1b[2J",
    "\r\nx: y",
    "\u202e1",
    "x " * 2_500,
    10**20,
]


def not_objects() -> list[str]:
    return JSON_SCALARS + NOT_JSON


def replaced(message: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the message without the field at ``path``, and with each wrong value there."""
    for value in [..., *WRONG, {}, {"a": 1}]:
        changed = copy.deepcopy(message)
        at = changed
        for key in path[:-1]:
            at = at[key]
        if value is ...:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        yield json.dumps(changed)

"""Validation of JSON Schemas for tool arguments, and of arguments against them.

Nothing is ever fetched: a ``$ref`` must lead to a place in the same schema.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_CHARACTERS = 16 * 1024
"""The most characters of a schema as JSON."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
NOT_AT_ROOT = frozenset({"oneOf", "anyOf", "allOf", "enum", "not", *_REFERENCES})
"""Keywords at the root of a function's parameters for which OpenAI refuses the whole request, or,
in the case of references, that it does not follow."""
_SHOWN_FAULTS = 3
_SHOWN_CHARACTERS = 200

_MOST_STEPS = 20_000
"""The most keywords evaluated in one validation, about 0.2 s: a schema of 1 KB can take years."""

_DEEPEST = 64
"""The deepest nesting of keywords. It lies below Python's recursion limit, because the native
library of ``referencing`` panics if that limit is hit within it."""

_steps: ContextVar[int] = ContextVar("steps")
_depth: ContextVar[int] = ContextVar("depth")

# Exceptions that the library and its regular expressions raise for unusable schemas.
_UNUSABLE = (RecursionError, ArithmeticError, AttributeError, TypeError, re.error)


def check(schema: dict[str, Any]) -> None:
    """Check that ``schema`` is a usable JSON Schema. Raises ValueError with the reason."""
    if len(json.dumps(schema)) > MAX_CHARACTERS:
        raise ValueError(f"has more than {MAX_CHARACTERS} characters")
    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError("$schema is not a string")
    try:
        _kind(schema).check_schema(schema)
        for ref in _refs(schema):
            if not ref.startswith("#"):
                raise ValueError("a $ref may only lead to a place in the same schema")
        _resolve(schema)
        # A $ref that leads to itself shows only when it is followed.
        _start_counting()
        next(_validator(schema).iter_errors({}), None)
    except SchemaError as error:
        place = error.json_path.removeprefix("$").lstrip(".")
        raise ValueError(
            f"is not a JSON Schema: {f'{place}: ' if place else ''}{_cut(error.message)}"
        ) from None
    except Unresolvable:
        raise ValueError("a $ref leads nowhere") from None
    except _UNUSABLE:
        raise ValueError("is not a JSON Schema that can be used") from None


def check_parameters(schema: dict[str, Any]) -> None:
    """Check a schema for a tool that models may call. Raises ValueError with the reason."""
    if refused := sorted(NOT_AT_ROOT & schema.keys()):
        raise ValueError(f"has {', '.join(refused)} at its root, which models do not take")
    check(schema)


def for_models(schema: dict[str, Any]) -> dict[str, Any]:
    """Adapt a third party's schema to what models accept.

    A root that is a reference is replaced by the place it refers to. Other keywords that models
    refuse at the root are removed, so a model may send arguments that do not fit; the tool's
    server checks them. Raises ValueError for a ``$ref`` that leads nowhere.
    """
    root = schema
    for _ in range(_DEEPEST):
        if not isinstance(ref := root.get("$ref"), str):
            break
        root = _merged(_place(schema, ref), {key: root[key] for key in root if key != "$ref"})
    plain = {key: root[key] for key in root if key not in NOT_AT_ROOT}
    return {"properties": {}, **plain, "type": "object"}


def _place(schema: dict[str, Any], ref: str) -> dict[str, Any]:
    try:
        root = Resource.from_contents(schema, default_specification=DRAFT202012)
        found = Registry().resolver_with_root(root).lookup(ref).contents if ref[:1] == "#" else None
    except (Unresolvable, *_UNUSABLE):
        found = None
    if not isinstance(found, dict):
        raise ValueError("a $ref leads nowhere")
    return found


def _merged(place: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """Merge the target of a ``$ref`` with the keywords beside the ``$ref``, since both apply."""
    both = {**place, **beside}
    if isinstance(place.get("properties"), dict) and isinstance(beside.get("properties"), dict):
        both["properties"] = {**place["properties"], **beside["properties"]}
    if isinstance(place.get("required"), list) and isinstance(beside.get("required"), list):
        both["required"] = [*{*map(str, place["required"]), *map(str, beside["required"])}]
    return both


class Arguments:
    """Checks a model's arguments for a tool. Compiles the schema on first use."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._validator: Validator | None = None

    def faults(self, arguments: dict[str, Any]) -> str | None:
        """Return the errors, worded for the model to correct them, or None. Raises ValueError for
        an unusable schema, stored before schemas were checked."""
        if self._validator is None:
            check(self._schema)
            self._validator = _validator(self._schema)
        _start_counting()
        try:
            found = list(itertools.islice(self._validator.iter_errors(arguments), _SHOWN_FAULTS))
        except (Unresolvable, *_UNUSABLE):
            raise ValueError("is not a JSON Schema that can be used") from None
        return "; ".join(map(_told, found)) if found else None


def _kind(schema: dict[str, Any]) -> type[Validator]:
    """Return the validator of the draft that ``$schema`` names, else of the newest."""
    found: type[Validator] = validator_for(schema, default=Draft202012Validator)
    return found


def _start_counting() -> None:
    _steps.set(0)
    _depth.set(0)


@cache
def _counting(kind: type[Validator]) -> type[Validator]:
    """Return ``kind`` with limits on steps and depth; beyond them it raises ValueError."""

    def counted(keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def run(*given: Any) -> Iterator[ValidationError]:
            depth = _depth.get(0)
            _steps.set(_steps.get(0) + 1)
            if _steps.get() > _MOST_STEPS or depth >= _DEEPEST:
                raise ValueError("is too complicated, or leads to itself")
            _depth.set(depth + 1)
            try:
                yield from keyword(*given) or ()
            finally:
                _depth.set(depth)

        return run

    keywords = {name: counted(keyword) for name, keyword in kind.VALIDATORS.items()}
    made: type[Validator] = extend(kind, keywords)  # type: ignore[no-untyped-call]
    return made


def _validator(schema: dict[str, Any]) -> Validator:
    # The registry is empty on purpose: the default one would fetch unknown references.
    return _counting(_kind(schema))(schema, registry=Registry())


def _resolve(schema: dict[str, Any]) -> None:
    """Check that every reference resolves. Raises Unresolvable."""
    if any(isinstance(each.get("$id"), str) for each in _objects(schema)):
        return  # it changes what a $ref is relative to
    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().resolver_with_root(root)
    for ref in set(_refs(schema)):
        resolver.lookup(ref)


def _refs(schema: dict[str, Any]) -> Iterator[str]:
    for each in _objects(schema):
        for name in _REFERENCES:
            if isinstance(ref := each.get(name), str):
                yield ref


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _told(error: ValidationError) -> str:
    place = error.json_path.removeprefix("$").lstrip(".")
    return f"{place}: {_cut(error.message)}" if place else _cut(error.message)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"

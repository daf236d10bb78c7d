"""Schemas of tools' arguments: any input is accepted, or refused with a reason."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.tools.schema import NOT_AT_ROOT, Arguments, check, check_parameters, for_models

pytestmark = pytest.mark.unit

_KEYWORDS = st.sampled_from(
    "$anchor $defs $dynamicAnchor $dynamicRef $id $ref $schema $vocabulary additionalProperties "
    "allOf anyOf const contains dependentRequired dependentSchemas else enum exclusiveMinimum "
    "format if items maxItems maxLength maximum minItems multipleOf not oneOf pattern "
    "patternProperties prefixItems properties propertyNames required then type unevaluatedItems "
    "unevaluatedProperties uniqueItems a b".split()
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(
        ["#", "#/a", "#a", "string", "object", "http://127.0.0.1:9/", "(", "[a", "^a*$"]
    ),
    st.sampled_from(["http://json-schema.org/draft-07/schema#", "urn:x", "//", "::", 10**400]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(schema=st.dictionaries(_KEYWORDS, _VALUES, max_size=5), arguments=_VALUES)
def test_whatever_is_given_nothing_but_a_reason_comes_out(
    schema: dict[str, Any], arguments: Any
) -> None:
    try:
        check(schema)
        told = Arguments(schema).faults({"a": arguments, "b": 1})
    except ValueError as error:
        assert 0 < len(str(error)) < 500
    else:
        assert told is None or 0 < len(told) < 1500


def test_references_inside_are_followed() -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"$ref": "#/$defs/id"}, "left": {"$ref": "#/$defs/tree"}},
        "$defs": {
            "id": {"type": "integer"},
            "tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}},
        },
    }
    check(schema)
    arguments = Arguments(schema)
    assert arguments.faults({"id": 1, "left": {"left": {}}}) is None
    assert arguments.faults({"left": {"left": {"left": 1}}}) == (
        "left.left.left: 1 is not of type 'object'"
    )


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"unevaluatedProperties": False, "allOf": [schema]}
    return schema


def _branching(levels: int) -> dict[str, Any]:
    places: dict[str, Any] = {
        f"a{level}": {"allOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**places, f"a{levels}": {"type": "object"}}}


@pytest.mark.parametrize("schema", [_nested(25), _branching(100)])
def test_one_that_would_take_years_is_given_up(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="too complicated"):
        check(schema)
    with pytest.raises(ValueError):
        Arguments(schema).faults({"a": 1})


@pytest.mark.parametrize("keyword", sorted(NOT_AT_ROOT))
def test_what_models_refuse_is_refused_at_the_root_only(keyword: str) -> None:
    part: Any = {"type": "string"} if keyword == "not" else [{"type": "string"}]
    part = "#" if "ef" in keyword else part
    check_parameters({"type": "object", "properties": {"a": {keyword: part}}})
    with pytest.raises(ValueError, match=rf"^has {re.escape(keyword)} at its root"):
        check_parameters({"type": "object", "properties": {}, keyword: part})


_PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({}, {"type": "object", "properties": {}}),
        (_PERSON, _PERSON),
        ({**_PERSON, "anyOf": [{"required": ["name"]}], "not": {}}, _PERSON),
        ({"enum": [{}], "type": ["object", "null"]}, {"type": "object", "properties": {}}),
        # A named type, as generators write it.
        (
            {"$ref": "#/definitions/Person", "definitions": {"Person": _PERSON}},
            {**_PERSON, "definitions": {"Person": _PERSON}},
        ),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": _PERSON}},
            {**_PERSON, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": _PERSON}},
        ),
        (
            {
                "$ref": "#/$defs/p",
                "properties": {"age": {"type": "integer"}},
                "$defs": {"p": {**_PERSON, "oneOf": []}},
            },
            {
                **_PERSON,
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                "$defs": {"p": {**_PERSON, "oneOf": []}},
            },
        ),
        # A reference to itself says nothing.
        ({"$ref": "#"}, {"type": "object", "properties": {}}),
    ],
)
def test_what_others_made_is_told_as_models_take_it(
    schema: dict[str, Any], wanted: dict[str, Any]
) -> None:
    made = for_models(schema)
    assert made == wanted
    assert not NOT_AT_ROOT & made.keys()


@pytest.mark.parametrize(
    "ref", ["#/$defs/nothing", "http://127.0.0.1:9/", "#nothing", "x", "", "#/type"]
)
def test_a_root_that_leads_nowhere(ref: str) -> None:
    with pytest.raises(ValueError, match="leads nowhere"):
        for_models({"$ref": ref, "type": "object"})


@pytest.mark.parametrize("dialect", [[], 1, {}])
def test_a_dialect_of_another_type_leads_nowhere(dialect: Any) -> None:
    with pytest.raises(ValueError, match="leads nowhere"):
        for_models({"$schema": dialect, "$ref": "#/a", "a": {}})


@settings(max_examples=200, deadline=None)
@given(schema=st.dictionaries(_KEYWORDS, _VALUES, max_size=5))
def test_no_schema_leaves_what_models_refuse(schema: dict[str, Any]) -> None:
    try:
        made = for_models(schema)
    except ValueError:
        return
    assert made["type"] == "object"
    assert not NOT_AT_ROOT & made.keys()

"""Schemas under ``strict: true``, with answers checked by jsonschema_rs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from jsonschema_rs import is_valid

from justright.errors import UsageError
from justright.serve.protocol import AsSchema
from justright.serve.strict_schema import closed

A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
B: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "integer"}}}


def allows(schema: Any, answer: Any) -> bool:
    return bool(is_valid(schema, answer))


@pytest.mark.parametrize(
    ("schema", "kept", "refused"),
    [
        (A, {"a": 1}, {"a": 1, "x": 2}),
        (A, {}, {"x": 2}),
        ({"properties": {"a": {}}}, {"a": 1}, {"x": 1}),
        ({"type": "object"}, {}, {"x": 1}),
        ({"type": ["object", "null"]}, None, {"x": 1}),
        ({"type": "object", "properties": {"o": A}}, {"o": {"a": 1}}, {"o": {"x": 1}}),
        ({"type": "array", "items": A}, [{"a": 1}], [{"x": 1}]),
        ({"type": "array", "prefixItems": [A]}, [{"a": 1}], [{"x": 1}]),
        ({"anyOf": [A, {"type": "null"}]}, None, {"x": 1}),
        ({"oneOf": [A, {"type": "null"}]}, {"a": 1}, {"x": 1}),
        ({"allOf": [A]}, {"a": 1}, {"x": 1}),
        ({"$ref": "#/$defs/A", "$defs": {"A": A}}, {"a": 1}, {"x": 1}),
        ({"$ref": "#/definitions/A", "definitions": {"A": A}}, {"a": 1}, {"x": 1}),
        ({"type": "object", "patternProperties": {"^p": A}}, {"p1": {"a": 1}}, {"p1": {"x": 1}}),
        ({"type": "object", "patternProperties": {"^p": {}}}, {"p1": 1}, {"x": 1}),
        ({"type": "object", "additionalProperties": A}, {"any": {"a": 1}}, {"any": {"x": 1}}),
        (A | {"anyOf": [{"required": ["a"]}, {"minProperties": 0}]}, {"a": 1}, {"x": 1}),
    ],
)
def test_objects_have_no_other_properties(schema: Any, kept: Any, refused: Any) -> None:
    before = copy.deepcopy(schema)
    found = closed(schema)
    assert schema == before
    assert allows(schema, kept)
    assert allows(schema, refused)
    assert allows(found, kept)
    assert not allows(found, refused)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": True},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "integer"},
        {"enum": [{"type": "object", "properties": {}}]},
        {"const": {"properties": {"a": 1}}},
        {"type": "object", "enum": [{"a": 1}]},
        {"type": "string", "default": {"properties": {}}},
        {},
        True,
    ],
)
def test_a_strict_schema_keeps_its_meaning(schema: Any) -> None:
    assert closed(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [A, B]},
        A | {"allOf": [B]},
        A | {"anyOf": [B, {"type": "null"}]},
        A | {"$ref": "#/$defs/B", "$defs": {"B": B}},
        {"allOf": [{"$ref": "#/$defs/B"}, A], "$defs": {"B": B}},
        {"allOf": [{"anyOf": [A, B]}, {"type": "object"}]},
        {"anyOf": [A], "oneOf": [B]},
        {"type": "array", "items": {"allOf": [A, B]}},
    ],
)
def test_an_object_of_several_schemas_is_refused(schema: Any) -> None:
    with pytest.raises(UsageError, match="strict: true cannot close"):
        closed(schema)


@pytest.mark.parametrize("strict", [None, False, True])
def test_strict_is_a_boolean_as_in_openai(strict: bool | None) -> None:
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": strict},
    }
    assert AsSchema.model_validate(wanted).json_schema.strict is strict

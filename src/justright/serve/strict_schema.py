"""JSON schemas under ``strict: true``: an object has only the properties that the schema names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from justright.errors import UsageError

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose value maps names to schemas."""
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
"""Keywords whose value is a list of schemas."""
_SINGLE = ("items", "additionalProperties")
"""Keywords whose value is a schema."""
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf")


def closed(schema: Any) -> Any:
    """Return the schema with ``additionalProperties: false`` in every object that does not set it.

    OpenAI requires the client to write this itself. What the schema sets stays: any ``additionalProperties``, and the
    list of required properties.

    Args:
        schema: JSON values; they are not modified.

    Raises:
        UsageError: several schemas together describe an object, so none of them can be closed by itself.
    """
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    for key in _NAMED:
        if isinstance(found.get(key), Mapping):
            found[key] = {name: closed(one) for name, one in found[key].items()}
    for key in _LISTS:
        if isinstance(found.get(key), list):
            found[key] = [closed(one) for one in found[key]]
    for key in _SINGLE:
        if key in found:
            found[key] = closed(found[key])
    if _is_object(schema) and "additionalProperties" not in schema:
        found["additionalProperties"] = False
    _check_combined(schema)
    return found


def _is_object(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    elsewhere = any(key in schema for key in (*_COMBINING, "enum", "const"))
    return "properties" in schema or ("object" in kinds and not elsewhere)


def _check_combined(schema: Mapping[str, Any]) -> None:
    """Raise an error if several schemas describe one object: closed, each would forbid the others' properties."""
    described: list[Any] = [key for key in ("properties", "$ref") if key in schema]
    for key in ("allOf", "anyOf", "oneOf"):
        branches = schema.get(key)
        found = [one for one in branches if _describes(one)] if isinstance(branches, list) else []
        described += found if key == "allOf" else found[:1]
    if len(described) > 1:
        raise UsageError(
            "the JSON schema describes one object in several places (properties, $ref, allOf, anyOf, oneOf), which "
            "strict: true cannot close. Write it as one object, or leave strict out"
        )


def _describes(branch: Any) -> bool:
    """Whether a branch of a combination names properties."""
    if not isinstance(branch, Mapping):
        return False
    return _is_object(branch) or any(key in branch for key in _COMBINING)

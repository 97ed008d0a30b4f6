"""JSON schemas under ``strict: true``: an object has no properties but those that the schema names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from justright.errors import UsageError

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords that hold schemas by name."""
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
"""Keywords that hold a list of schemas."""
_SINGLE = ("items", "additionalProperties")
"""Keywords that hold one schema."""
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf")


def closed(schema: Any) -> Any:
    """A schema with ``additionalProperties: false`` in every object that does not say what else it may have.

    OpenAI demands that the client writes this itself. What a schema says stays: ``additionalProperties`` of any value,
    and which properties are required.

    Args:
        schema: as JSON values; it is not changed.

    Raises:
        UsageError: an object is put together from several schemas, of which none could be closed by itself.
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
    """Refuse objects that several schemas describe together: closed, each would forbid the others' properties."""
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
    """Whether a branch of a combination says which properties there are."""
    if not isinstance(branch, Mapping):
        return False
    return _is_object(branch) or any(key in branch for key in _COMBINING)

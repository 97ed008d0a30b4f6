"""What a request to vLLM may say: what vLLM's own OpenAPI document knows, and what of ours has no meaning there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from justright.serve.api_errors import ApiError, of_validation
from justright.serve.protocol import ChatRequest, CompletionRequest, Reasoning

_OURS = ("reasoning", "thinking_budget", "justright")
"""Names that the mapping consumes."""
_LEAST: Mapping[str, tuple[type[ChatRequest] | type[CompletionRequest], Mapping[str, Any]]] = {
    "ChatCompletionRequest": (
        ChatRequest,
        {"model": "x", "messages": [{"role": "user", "content": "x"}]},
    ),
    "CompletionRequest": (CompletionRequest, {"model": "x", "prompt": "x"}),
}
"""By vLLM's name of a request: ours, and the least that it needs."""


class Parameters:
    """Refuses what vLLM would ignore.

    Args:
        document: vLLM's OpenAPI document.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._schemas: Mapping[str, Any] = document.get("components", {}).get("schemas", {})

    def checked(self, kind: str, body: Mapping[str, Any], *, mapped: bool) -> dict[str, Any]:
        """A request without what has no meaning.

        Args:
            kind: vLLM's name for it.
            body: after the mapping.
            mapped: whether the mapping looked at it; it leaves other models' requests alone.

        Raises:
            ApiError: a parameter that nobody knows, at any depth, or one of OpenAI's that could not be kept.
        """
        schema = self._schemas.get(kind)
        if schema is None:
            return dict(body)
        found = {}
        for name, value in body.items():
            if name in schema["properties"]:
                found[name] = value
            elif name in _OURS:
                self._check_own(name, value, mapped=mapped)
            elif value is not None:
                _check_neutral(kind, name, value)
        if isinstance(messages := found.get("messages"), list):
            found["messages"] = [_plain(message) for message in messages]
        if path := self._unknown(found, schema):
            raise _no_such(".".join(map(str, path)))
        return found

    def _check_own(self, name: str, value: Any, *, mapped: bool) -> None:
        if value is not None and not mapped:
            raise _no_such(name)
        if isinstance(value, Mapping):
            for inner in value:
                if name == "reasoning" and inner not in Reasoning.model_fields:
                    raise _no_such(f"{name}.{inner}")

    def _unknown(self, value: Any, schema: Mapping[str, Any]) -> list[str | int]:
        """The path of the first name that a schema does not know; empty: there is none."""
        schema = self._resolved(schema)
        branches = schema.get("anyOf") or schema.get("oneOf")
        if branches:
            kind = "object" if isinstance(value, dict) else "array"
            fitting = [one for one in map(self._resolved, branches) if one.get("type", kind) == kind]
            return min((self._unknown(value, one) for one in fitting), key=_badness, default=[])
        if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
            for at, item in enumerate(value):
                if isinstance(item, dict | list) and (inner := self._unknown(item, schema["items"])):
                    return [at, *inner]
        if isinstance(value, dict) and "properties" in schema:
            for name, item in value.items():
                if name not in schema["properties"]:
                    return [name]
                if isinstance(item, dict | list) and (
                    inner := self._unknown(item, schema["properties"][name])
                ):
                    return [name, *inner]
        return []

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema


def _badness(path: list[str | int]) -> tuple[bool, int]:
    """Of several branches the one that knows all, else the one that comes furthest."""
    return bool(path), -len(path)


def _plain(message: Any) -> Any:
    """A message as vLLM takes it: parts of text joined as the embedded server does, nothing that is empty."""
    if not isinstance(message, dict):
        return message
    found = {name: value for name, value in message.items() if value is not None or name == "content"}
    if "reasoning_content" in found:
        thought = found.pop("reasoning_content")
        found.setdefault("reasoning", thought)
    for name in ("annotations", "tool_calls"):  # as OpenAI's client gives an answer back
        if found.get(name) == []:
            del found[name]
    parts = found.get("content")
    if isinstance(parts, list) and all(_is_text(part) for part in parts):
        found["content"] = "".join(part["text"] for part in parts)
    return found


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


def _check_neutral(kind: str, name: str, value: Any) -> None:
    """Whether a parameter that vLLM does not know changes nothing.

    Raises:
        ApiError: it would, as the embedded server says it.
    """
    model, least = _LEAST[kind]
    if name not in model.model_fields:
        raise _no_such(name)
    if name == "stop_in_reasoning" and value is False:
        message = "vLLM stops in reasoning too: leave stop_in_reasoning out, or ask the embedded server"
        raise ApiError(400, message, name, "unsupported_parameter")
    asked = {**least, name: value}
    try:
        model.model_validate_json(json.dumps(asked))
    except ValidationError as error:
        raise of_validation(error, asked) from error


def _no_such(param: str) -> ApiError:
    return ApiError(400, f"there is no parameter {param}: leave it out", param, "unknown_parameter")

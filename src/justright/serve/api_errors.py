"""Errors for clients: an HTTP status and an error object in OpenAI's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from justright.errors import JustrightError, ResourceError, UsageError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}
"""Maps every error status to the ``type`` of its error object."""

_CODES = {
    "missing": "missing_required_parameter",
    "union_tag_not_found": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
}
_NEUTRAL_ONLY = {
    "audio": "the answer is always text",
    "best_of": "request several answers with n and choose one yourself",
    "echo": "the answer never repeats the prompt",
    "frequency_penalty": "use repetition_penalty",
    "function_call": "the server calls no functions; response_format gives JSON",
    "functions": "the server calls no functions; response_format gives JSON",
    "logit_bias": "response_format can restrict an answer",
    "modalities": "the answer is always text",
    "parallel_tool_calls": "the server calls no tools",
    "prediction": "drafts come from the prompt: put the text there",
    "presence_penalty": "use repetition_penalty",
    "service_tier": "the server has one tier",
    "store": "the server stores nothing",
    "suffix": "the model continues a prompt and fills no gap between two texts",
    "tool_calls": "the server calls no tools",
    "tool_choice": "the server calls no tools; response_format gives JSON",
    "tools": "the server calls no tools; response_format gives JSON",
    "verbosity": "request a length in the prompt, or set max_completion_tokens",
    "web_search_options": "the server does not search the web",
}
"""OpenAI parameters of which only the neutral value is allowed, and what to do instead."""


@dataclass(slots=True, eq=False)
class ApiError(Exception):
    """An error response.

    Attributes:
        status: HTTP status.
        message: what was found, what is allowed, what to do.
        param: the parameter at fault.
        code: machine-readable code.
        headers: additional response headers.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the response body."""
        about = {"message": self.message, "type": KINDS[self.status], "param": self.param, "code": self.code}
        return {"error": about}

    def to_response(self) -> Response:
        """Return the response; ASCII, since a client's text in it may have no UTF-8 form."""
        body = json.dumps(self.to_dict())
        return Response(body, self.status, dict(self.headers), media_type="application/json")


def of_error(error: JustrightError, param: str | None = None) -> ApiError:
    """Convert an error that a client's request caused.

    Args:
        error: the error as raised.
        param: the parameter at fault, if known.
    """
    if isinstance(error, ResourceError):
        return ApiError(400, str(error), param, "context_length_exceeded")
    if isinstance(error, UsageError):
        return ApiError(400, str(error), param, "invalid_value")
    return ApiError(500, str(error), None, "engine_error")


def of_validation(error: ValidationError, body: Any) -> ApiError:
    """Convert a failed validation of a body; of several faults, report the most deeply nested.

    Args:
        error: pydantic's error.
        body: the body as Python values; None if it is not JSON.
    """
    found = error.errors(include_url=False)
    if any(one["type"] == "json_invalid" for one in found):
        return ApiError(400, f"the body is not valid JSON: {found[0]['msg']}", None, "invalid_json")
    worst = max(found, key=_depth)
    path = _path(worst["loc"], body, missing=worst["type"] == "missing")
    if worst["type"].startswith("union_tag"):
        path.append(worst["ctx"]["discriminator"].strip("'"))
    param = ".".join(map(str, path)) or None
    name = str(path[-1]) if path else ""
    if name in _NEUTRAL_ONLY:
        return ApiError(
            400, f"{param} is not supported: {_NEUTRAL_ONLY[name]}", param, "unsupported_parameter"
        )
    code = _CODES.get(worst["type"], "invalid_value")
    if code == "unknown_parameter":
        return ApiError(400, f"there is no parameter {param}: leave it out", param, code)
    if code == "missing_required_parameter":
        return ApiError(400, f"the parameter {param} is missing: send it", param, code)
    message = worst["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param, code)


def _depth(one: Any) -> tuple[bool, bool, bool, int]:
    """Return a sort key for how deep a fault lies; among a union's branches, it prefers the one whose type fits."""
    kind, place = one["type"], one["loc"]
    return place[-1:] == ("type",), kind in _CODES, not kind.endswith("_type"), len(place)


def _path(location: Sequence[int | str], body: Any, *, missing: bool) -> list[int | str]:
    """Return the path to a fault, without pydantic's names for the branches of a union."""
    path: list[int | str] = []
    for at, step in enumerate(location, start=1):
        if isinstance(body, list) and isinstance(step, int):
            body = body[step]
        elif isinstance(body, Mapping) and step in body:
            body = body[str(step)]
        elif not missing or at < len(location):
            continue
        path.append(step)
    return path

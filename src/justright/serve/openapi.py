"""The OpenAPI document: requests, responses and every possible error."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from justright.serve import responses
from justright.serve.protocol import ChatRequest, CompletionRequest

Responses = dict[int | str, dict[str, Any]]
_REF = "#/components/schemas/{model}"
_MEANINGS = {
    400: "The request is invalid; `param` names the parameter at fault",
    401: "The API key is missing or wrong",
    403: "The `Host` header names a host that is not allowed",
    404: "There is no such model",
    408: "The head or the body arrived too slowly",
    413: "The body is too large",
    415: "The body is compressed",
    429: "Too many requests are waiting; `Retry-After` is the time to wait",
    500: "The engine failed",
    503: "The server is shutting down, or too many connections are open",
    504: "No token was generated within the server's deadline",
}


def errors(*statuses: int) -> Responses:
    """Return the error responses of a route."""
    return {status: {"model": responses.ErrorBody, "description": _MEANINGS[status]} for status in statuses}


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a route's body."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def streamed(whole: type[BaseModel], piece: type[BaseModel]) -> Responses:
    """Return the responses of a route that answers whole or, with ``stream``, as events."""
    return {
        200: {
            "description": f"The answer; with `stream`, as events: each is a {piece.__name__}, the last is `[DONE]`",
            "model": whole,
            # No schema: OpenAPI versions differ on whether it describes the whole stream or each event.
            "content": {"text/event-stream": {}},
        }
    }


def describe(app: FastAPI, *, keys: bool) -> None:
    """Set the application's OpenAPI document.

    Args:
        app: the application with its routes.
        keys: whether clients need an API key.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, keys=keys)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = found["components"]["schemas"]
    inputs: list[Any] = [(ChatRequest, "validation"), (CompletionRequest, "validation")]
    outputs: list[Any] = [
        (responses.ChatChunk, "serialization"),
        (responses.CompletionChunk, "serialization"),
    ]
    _, extra = models_json_schema([*inputs, *outputs], ref_template=_REF)
    for name, schema in extra["$defs"].items():
        schemas.setdefault(name, schema)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            if not keys:
                operation["responses"].pop("401", None)
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found

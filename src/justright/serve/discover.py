"""Detects an upstream's kind and its fast model from what it reports about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from justright.errors import UsageError
from justright.reasoning.budget import ThinkingTags
from justright.serve.upstream import KINDS, SWITCH, Kind, Upstream

_OWNERS: Mapping[str, Kind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
"""Maps ``owned_by`` in a list of models to the server's kind."""
T = TypeVar("T")


class _Model(BaseModel):
    id: str
    owned_by: str | None = None
    parent: str | None = None


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class _Adapter(BaseModel):
    id: int
    path: str = ""


_MODELS, _ADAPTERS = TypeAdapter(_Models), TypeAdapter(list[_Adapter])


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """What the user specifies about the upstream; None: detect it.

    Attributes:
        kind: one of `KINDS`.
        model: name of the model with two modes.
        fast: its adapter, by name; for llama.cpp by id or path.
    """

    kind: str | None = None
    model: str | None = None
    fast: str | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise UsageError(f"the upstream's kind is {self.kind!r}; allowed: {', '.join(KINDS)}")


def kind_of(models: Any, wanted: UpstreamOptions) -> Kind:
    """Return the kind of a server.

    Args:
        models: its response to ``/v1/models``.
        wanted: what the user specifies.

    Raises:
        UsageError: the response matches no known kind.
    """
    if wanted.kind is not None:
        return next(kind for kind in KINDS if kind == wanted.kind)
    owners = [str(model.owned_by) for model in _parsed(_MODELS, models, "/v1/models").data]
    if kind := next((_OWNERS[owner] for owner in owners if owner in _OWNERS), None):
        return kind
    if "justright" in owners:
        raise UsageError(
            "the upstream is a justright server, which needs no gateway: send requests to it directly"
        )
    raise UsageError(
        f"the upstream's models are owned by {', '.join(owners)}, which is not a known server: give its kind (--kind "
        f"{', '.join(KINDS)})"
    )


def upstream_of(models: Any, adapters: Any, wanted: UpstreamOptions, template: str | None = None) -> Upstream:
    """Resolve the upstream with all names.

    Args:
        models: its response to ``/v1/models``.
        adapters: llama.cpp's response to ``/lora-adapters``; None for other servers.
        wanted: what the user specifies.
        template: the model's chat template, if known; without an adapter it must provide the fast mode.

    Raises:
        UsageError: the upstream lacks what the user names, or several models or adapters match.
    """
    kind, listed = kind_of(models, wanted), _parsed(_MODELS, models, "/v1/models").data
    names, loras = [model.id for model in listed], [model.id for model in listed if model.parent]
    model = wanted.model or next((name for name in names if name not in loras), names[0])
    if model not in names:
        raise UsageError(f"the upstream has no model {model!r}; it has: {', '.join(names)}")
    if kind != "llama.cpp":
        return Upstream(kind, model, _one(loras, wanted.fast))
    loaded = _parsed(_ADAPTERS, adapters, "/lora-adapters")
    ids = tuple(one.id for one in loaded)
    by_path = {one.path: one.id for one in loaded}
    if wanted.fast is not None and wanted.fast in map(str, ids):
        fast: int | None = int(str(wanted.fast))
    else:
        path = _one(list(by_path), wanted.fast)
        fast = None if path is None else by_path[path]
    tags = ThinkingTags()
    known = (SWITCH, tags.open, tags.close, "reasoning_effort")
    marks = [mark for mark in known if template is None or mark in template]
    has_fast = fast is not None or SWITCH in marks
    return Upstream(kind, model, fast, ids, has_fast=has_fast, reasons=has_fast or bool(marks))


def _one(known: Sequence[str], wanted: str | None) -> str | None:
    """Return the adapter to use; None if there is none."""
    if wanted is not None and wanted not in known:
        raise UsageError(f"the upstream has no adapter {wanted!r}; it has: {', '.join(known) or 'none'}")
    if wanted is None and len(known) > 1:
        raise UsageError(
            f"the upstream has the adapters {', '.join(known)}: name the one of the fast mode (--fast)"
        )
    return wanted or (known[0] if known else None)


def _parsed(adapter: TypeAdapter[T], value: Any, path: str) -> T:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the response"
        raise UsageError(
            f"the upstream's {path} is not that of an OpenAI-compatible server ({place}: {fault['msg']}): check its URL"
        ) from error

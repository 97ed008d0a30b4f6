"""Detects an upstream's kind and its fast model from what it reports about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from justright.errors import UsageError
from justright.reasoning.budget import ThinkingTags
from justright.serve.upstream import KINDS, SWITCH, Kind, Upstream

_OWNERS: Mapping[str, Kind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
"""Maps ``owned_by`` in a list of models to the server's kind."""


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
            raise UsageError(f"a server of the kind {self.kind!r}; allowed: {', '.join(KINDS)}")


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
    owners = [str(card.get("owned_by")) for card in _cards(models)]
    for owner in owners:
        if owner in _OWNERS:
            return _OWNERS[owner]
    if "justright" in owners:
        raise UsageError(
            "the upstream is a justright server, which chooses slow or fast by itself: ask it directly"
        )
    raise UsageError(
        f"the upstream's models are owned by {', '.join(owners)}, which tells of no server that is known: say what it "
        f"is (--kind {', '.join(KINDS)})"
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
    kind = kind_of(models, wanted)
    cards = _cards(models)
    names = [str(card["id"]) for card in cards]
    bases = [str(card["id"]) for card in cards if not card.get("parent")]
    model = wanted.model or (bases or names)[0]
    if model not in names:
        raise UsageError(f"the upstream has no model {model!r}; it has: {', '.join(names)}")
    if kind == "llama.cpp":
        entries = [entry for entry in _listed(adapters, "/lora-adapters") if isinstance(entry.get("id"), int)]
        paths = {str(entry.get("path", "")): int(entry["id"]) for entry in entries}
        ids = tuple(int(entry["id"]) for entry in entries)
        fast = _adapter_id(paths, ids, wanted.fast)
        tags = ThinkingTags()
        marks = [m for m in (SWITCH, tags.open, tags.close) if template is None or m in template]
        has_fast = fast is not None or SWITCH in marks
        return Upstream(kind, model, fast, ids, has_fast=has_fast, reasons=has_fast or bool(marks))
    loras = [str(card["id"]) for card in cards if card.get("parent")]
    return Upstream(kind, model, _one(loras, wanted.fast))


def _one(there: Sequence[str], wanted: str | None) -> str | None:
    """Return the adapter to use; None if there is none."""
    if wanted is not None and wanted not in there:
        raise UsageError(f"the upstream has no adapter {wanted!r}; it has: {', '.join(there) or 'none'}")
    if wanted is None and len(there) > 1:
        raise UsageError(
            f"the upstream has several adapters: say which is the fast mode (--fast): {', '.join(there)}"
        )
    return wanted or (there[0] if there else None)


def _adapter_id(paths: Mapping[str, int], ids: Sequence[int], wanted: str | None) -> int | None:
    """Return llama.cpp's id of the adapter to use, given its id or path."""
    if wanted is not None and wanted.isdecimal() and int(wanted) in ids:
        return int(wanted)
    found = _one(list(paths), wanted)
    return None if found is None else paths[found]


def _cards(models: Any) -> list[Mapping[str, Any]]:
    """Return the models of a list; at least one."""
    data = models.get("data") if isinstance(models, Mapping) else None
    cards = [card for card in _listed(data, "/v1/models") if "id" in card]
    if not cards:
        raise UsageError("the upstream lists no model at /v1/models: is it an OpenAI-compatible server?")
    return cards


def _listed(found: Any, path: str) -> list[Mapping[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise UsageError(f"the upstream's {path} is no list of objects: is it an OpenAI-compatible server?")
    return found

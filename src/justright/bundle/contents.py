"""A bundle's parts, checked against its model before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter
from justright.architectures.spec import context_length, text_config
from justright.checkpoint.bundle_manifest import Bundle, bundled_files, write_bundle
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.finite import check_finite_files
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import check_tokenizer_files, resolve, resolve_drafter
from justright.checkpoint.tokenizer import load_tokenizer
from justright.engine.chat_modes import RequestBuilder
from justright.engine.checks import check_model, read_switch
from justright.engine.defaults import Defaults
from justright.errors import UsageError
from justright.progress import ProgressCallback
from justright.provenance import collect
from justright.speculative.registry import drafter_names
from justright.speculative.store import find_drafter, read_about, read_for, read_tensors

KIND_OF = {"lstm": "lstm", "hybrid": "lstm", "attention": "attention"}
"""Drafters that need a trained one, and its kind."""
_BEST = {"lstm": "hybrid", "attention": "attention"}


@dataclass(frozen=True, slots=True)
class Contents:
    """What belongs together.

    Attributes:
        model: the checkpoint directory.
        verifier: `weights_identity` of it.
        parts: of `justright.checkpoint.bundle_manifest.PARTS`, the folder of each.
        about: of each part, what it is.
        defaults: how it will be run.
        notes: what whoever bundles should know.
    """

    model: Path
    verifier: str
    parts: Mapping[str, Path]
    about: Mapping[str, Mapping[str, Any]]
    defaults: Defaults
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(bundled_files(self.model, self.parts).values())

    def write(
        self,
        out: Path,
        *,
        copy: bool = False,
        tick: ProgressCallback = lambda *_: None,
        inputs: Mapping[str, Path] | None = None,
        **extra: Any,
    ) -> Bundle:
        """See `write_bundle`; ``inputs`` (by default model and parts) and ``extra`` are for the provenance."""
        record = collect(inputs=inputs or {"model": self.model, **self.parts}, hash_inputs=False, **extra)
        return write_bundle(
            out, self.model, self.parts, verifier=self.verifier, about=self.about,
            defaults=self.defaults.to_dict(), provenance=record, copy=copy, tick=tick,
        )  # fmt: skip


def check_contents(
    model: str,
    *,
    switch: str | None = None,
    draft: str | None = None,
    draft_options: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Contents:
    """Find all parts and check that they are for this model; reads its weights once, to find what is not finite.

    Args:
        model: as `resolve` takes it; of a bundle, its checkpoint.
        switch: an adapter's directory or hub id.
        draft: a drafter's directory or hub id, or the name of one: then the trained one that a package carries for this
            model, if it needs one.
        draft_options: of the drafter, by default.
        defaults: names of `justright.engine.defaults.DEFAULTS` and their values.

    Raises:
        JustrightError: any of its kinds: a part that is not there, is damaged, or was made for another model; defaults
            that cannot be.
    """
    path = resolve(model).path
    config, tokenizer = check_verifier(path)
    identity = weights_identity(path)
    values = dict(defaults or {})
    parts: dict[str, Path] = {}
    about: dict[str, Mapping[str, Any]] = {}
    notes: list[str] = []
    adapter = None if switch is None else read_switch(switch, path)
    if adapter is not None:
        parts["switch"], about["switch"] = adapter.path, _about_switch(adapter)
        notes += _check_switch(adapter, tokenizer)
    if draft is not None:
        name, folder = _drafter(draft, path, identity, text_config(config).vocab_size)
        values.setdefault("draft", name)
        if folder is not None:
            parts["draft"], about["draft"] = folder, _about_drafter(folder)
            if adapter is not None and 1.0 not in about["draft"]["factors"]:
                notes.append("the drafter was trained in slow mode only: in fast mode it will guess less")
    settled = Defaults.of(values, draft_options or {})
    check_defaults(settled, config, RequestBuilder(tokenizer, adapter), about.get("draft", {}).get("kind"))
    with Checkpoint.open(path) as checkpoint:
        check_finite_files(checkpoint.files())
    return Contents(path, identity, parts, about, settled, tuple(notes))


def check_verifier(path: Path) -> tuple[dict[str, Any], PreTrainedTokenizerFast]:
    """The config and the tokenizer of a model that can be bundled.

    Raises:
        JustrightError: it cannot be run here, is damaged, or has no tokenizer.
    """
    check_model(path)
    check_tokenizer_files(path)
    with Checkpoint.open(path) as checkpoint:
        config = checkpoint.config
    return config, load_tokenizer(path)


def _check_switch(adapter: Adapter, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Refuse an adapter for other tokens; tell what it does not tell."""
    if (adapter.path / "tokenizer.json").is_file():
        ours, theirs = tokenizer.get_vocab(), load_tokenizer(adapter.path).get_vocab()
        if ours != theirs:
            moved = sorted(set(ours.items()) ^ set(theirs.items()))
            raise UsageError(
                f"{adapter.path} was made for a model with other tokens ({moved[0][0]!r} first): extract a switch for "
                "this one"
            )
    notes = []
    if adapter.base is None:
        notes.append(
            f"{adapter.path} does not say which model it was made for: nobody can check that it is this one"
        )
    if adapter.template is None:
        notes.append("the switch has no chat template: in fast mode the slow model's is used")
    return notes


def _about_switch(adapter: Adapter) -> dict[str, Any]:
    kept = {name: adapter.settings[name] for name in ("form", "energy", "slow") if name in adapter.settings}
    return {"base": adapter.base, "parameters": adapter.parameters, **kept}


def _about_drafter(folder: Path) -> dict[str, Any]:
    found = read_about(folder)
    shape = ("kind", "cell", "width", "spec", "verifier")
    kept: dict[str, Any] = {name: found[name] for name in shape if name in found}
    length = found.get("accuracy", {}).get("length")
    factors = found.get("data", {}).get("factors", [0.0])
    return {**kept, "acceptance_length": length, "factors": factors}


def _drafter(draft: str, model: Path, identity: str, vocab_size: int) -> tuple[str, Path | None]:
    """The drafter's name, and the folder of the trained one if it needs one."""
    named = draft in drafter_names()
    if named and draft not in KIND_OF:
        return draft, None
    folder = find_drafter(None, identity, KIND_OF[draft], model) if named else resolve_drafter(draft)
    about = read_for(folder, identity, read_about(folder)["kind"])  # of these weights, so of their vocabulary
    read_tensors(folder, about.get("draft_vocab") or 0, vocab_size)  # a damaged one is refused here
    return draft if named else _BEST[about["kind"]], folder


def check_defaults(
    defaults: Defaults, config: Mapping[str, Any], modes: RequestBuilder, kind: str | None
) -> None:
    """Refuse what a model, with these parts, cannot do.

    Args:
        defaults: of the bundle.
        config: of the model.
        modes: of the model, with its switch.
        kind: of the trained drafter; None: there is none.

    Raises:
        UsageError: a drafter that needs a trained one, an effort that needs a switch, more context than there is.
    """
    needed = KIND_OF.get(defaults.draft or "")
    if needed not in (None, kind):
        has = "none" if kind is None else f"one of the kind {kind}"
        raise UsageError(
            f"{defaults.draft} drafts need a trained drafter of the kind {needed}, and the bundle has {has}: give one"
        )
    modes.check(defaults.thinking, text_config(dict(config)).hidden_size)
    most = context_length(dict(config))
    if defaults.max_context is not None and defaults.max_context > most:
        raise UsageError(f"max_context is {defaults.max_context}, and the model's context is {most}")

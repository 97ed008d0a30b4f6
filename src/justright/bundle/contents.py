"""The parts of a bundle, validated against its model before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter
from justright.architectures.spec import ModelSpec
from justright.checkpoint.bundle_manifest import Bundle, bundled_files, write_bundle
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.finite import check_finite_weights
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
"""Drafters that need trained weights -> the kind of the trained drafter."""
_BEST = {"lstm": "hybrid", "attention": "attention"}


@dataclass(frozen=True, slots=True)
class Contents:
    """Validated contents of a bundle.

    Attributes:
        model: the checkpoint directory.
        verifier: its `weights_identity`.
        parts: names of `justright.checkpoint.bundle_manifest.PARTS` -> their folders.
        about: description of each part.
        defaults: of the bundle.
        notes: for the user.
    """

    model: Path
    verifier: str
    parts: Mapping[str, Path]
    about: Mapping[str, Mapping[str, Any]]
    defaults: Defaults
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
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
    """Find all parts and validate that they fit this model; reads its weights once to check that they are finite.

    Args:
        model: as `resolve` takes it; a bundle gives its checkpoint.
        switch: directory or hub id of an adapter.
        draft: directory or hub id of a drafter; or a drafter's name, which finds trained weights for this model in
            the installed packages if it needs any.
        draft_options: default options of the drafter.
        defaults: names of `justright.engine.defaults.DEFAULTS` -> values.

    Raises:
        JustrightError: a part is missing, damaged or made for another model; defaults that are not possible.
    """
    path = resolve(model).path
    spec, tokenizer = check_verifier(path)
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
        name, folder = _drafter(draft, path, identity, spec.vocab_size)
        values.setdefault("draft", name)
        if folder is not None:
            parts["draft"], about["draft"] = folder, _about_drafter(folder)
            if adapter is not None and 1.0 not in about["draft"]["factors"]:
                notes.append("the drafter was trained in slow mode only: fast mode will accept fewer tokens")
    settled = Defaults.of(values, draft_options or {})
    modes = RequestBuilder(tokenizer, adapter)
    check_defaults(settled, spec, modes, about.get("draft", {}).get("kind"))
    if modes.by_template_alone(settled.thinking):
        notes.append(
            f"effort {settled.effort} without a switch: only the chat template asks the model not to reason, and it "
            "may reason all the same. Try it with `justright generate --effort none`, or give --switch"
        )
    with Checkpoint.open(path) as checkpoint:
        check_finite_weights(checkpoint)
    return Contents(path, identity, parts, about, settled, tuple(notes))


def check_verifier(path: Path) -> tuple[ModelSpec, PreTrainedTokenizerFast]:
    """Validate a model for bundling; returns its spec and tokenizer.

    Raises:
        JustrightError: the model is not supported, is damaged, or has no tokenizer.
    """
    spec = check_model(path)
    check_tokenizer_files(path)
    return spec, load_tokenizer(path)


def _check_switch(adapter: Adapter, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Validate that an adapter has the model's tokens; returns notes on what it does not record."""
    if (adapter.path / "tokenizer.json").is_file():
        ours, theirs = tokenizer.get_vocab(), load_tokenizer(adapter.path).get_vocab()
        if ours != theirs:
            moved = sorted(set(ours.items()) ^ set(theirs.items()))
            raise UsageError(
                f"{adapter.path} was made for a model with other tokens (the first that differs is {moved[0][0]!r}); "
                "extract a switch for this model"
            )
    notes = []
    if adapter.base is None:
        notes.append(
            f"{adapter.path} does not record its model, so whether it fits this one cannot be checked"
        )
    if adapter.template is None:
        notes.append("the switch has no chat template: fast mode uses the slow model's")
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
    """The drafter's name, and the folder of its trained weights if it needs any."""
    named = draft in drafter_names()
    if named and draft not in KIND_OF:
        return draft, None
    folder = find_drafter(None, identity, KIND_OF[draft], model) if named else resolve_drafter(draft)
    about = read_for(folder, identity, read_about(folder)["kind"])  # so the vocabulary fits too
    read_tensors(folder, about.get("draft_vocab") or 0, vocab_size)  # raises for damaged weights
    return draft if named else _BEST[about["kind"]], folder


def check_defaults(defaults: Defaults, spec: ModelSpec, modes: RequestBuilder, kind: str | None) -> None:
    """Validate that the model and its parts support these defaults.

    Args:
        defaults: of the bundle.
        spec: of the model.
        modes: of the model, with its switch.
        kind: of the trained drafter; None without one.

    Raises:
        UsageError: a drafter without its trained weights, an effort without a switch, or too much context.
    """
    needed = KIND_OF.get(defaults.draft or "")
    if needed not in (None, kind):
        has = "none" if kind is None else f"one of the kind {kind}"
        raise UsageError(
            f"{defaults.draft} drafts need a trained drafter of the kind {needed}, but the bundle has {has}; give one"
        )
    modes.check(defaults.thinking, spec.hidden_size)
    if defaults.max_context is not None and defaults.max_context > spec.context:
        raise UsageError(
            f"max_context is {defaults.max_context}; the model's context is {spec.context}: give less"
        )

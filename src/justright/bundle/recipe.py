"""A recipe: the YAML file that describes a bundle, validated before any model is read.

model: org/reasoning-model        # the slow mode
fast: org/its-base-model          # the model that it was trained from; without it there is no switch
out: bundle                       # or -o
device: auto                      # or cpu
prune: {sparsity: 0.4}            # fields of `justright.prune.settings.Settings`
switch: {value: 0.9}              # fields of `SwitchRecipe`
draft: {sequences: 4096}          # texts, and fields of `DrafterShape`, `DataSetting`, `TrainSetting`
draft_options: {nodes: 12}        # default options of the drafter
defaults: {effort: none}          # of `justright.engine.defaults.DEFAULTS`

A missing section skips its step; an empty one (``draft: {}``) uses the defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from justright.adapter.ranks import RankRule, Scope
from justright.adapter.spectra import Method
from justright.engine.defaults import Defaults
from justright.errors import UsageError
from justright.prune.settings import Settings
from justright.training.pipeline import DrafterShape
from justright.training.self_generated import DataSetting
from justright.training.trainer import TrainSetting

T = TypeVar("T")
DEVICES = ("auto", "cpu")
_KEYS = ("model", "fast", "out", "device", "prune", "switch", "draft", "draft_options", "defaults")


@dataclass(frozen=True, slots=True)
class SwitchRecipe:
    """How the switch is extracted, see `justright.adapter.ranks.RankRule` and `justright.adapter.extract.extract`."""

    rule: str = "energy"
    value: float = 0.9
    power: int = 2
    scope: Scope = "matrix"
    budget: int | None = None
    max_rank: int = 512
    exact: bool | None = None
    svd: Method = "exact"
    workers: int = 1

    @property
    def ranks(self) -> RankRule:
        """The validated rank rule."""
        return RankRule(self.rule, self.value, self.power, self.scope)


@dataclass(frozen=True, slots=True)
class DraftRecipe:
    """How the drafter is trained, see `justright.training.pipeline.Job`."""

    texts: tuple[str, ...] = ("zoo",)
    shape: DrafterShape = field(default_factory=DrafterShape)
    data: DataSetting = field(default_factory=DataSetting)
    training: TrainSetting = field(default_factory=TrainSetting)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A validated recipe.

    Attributes:
        model: the reasoning model, as `justright.checkpoint.sources.resolve` takes it.
        fast: the model that it was trained from; None: no switch.
        out: the directory to create.
        device: one of `DEVICES`.
        prune: settings of the pruning; None skips it.
        switch: settings of the extraction; None skips it.
        draft: settings of the drafter's training; None skips it.
        defaults: of the bundle.
        content: of the file, for the record.
    """

    model: str
    fast: str | None = None
    out: Path | None = None
    device: str = "auto"
    prune: Settings | None = None
    switch: SwitchRecipe | None = None
    draft: DraftRecipe | None = None
    defaults: Defaults = field(default_factory=Defaults)
    content: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Recipe:
        """Read and validate a YAML file.

        Raises:
            UsageError: no such file, no YAML, an unknown key, or a value that is not allowed.
        """
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"the recipe {file} cannot be read: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"the recipe {file} is not YAML: {' '.join(str(error).split())}") from error
        try:
            return cls.of(content)
        except UsageError as error:
            raise UsageError(f"the recipe {file}: {error}") from error

    @classmethod
    def of(cls, content: Any) -> Recipe:
        """Validate the content of a file.

        Raises:
            UsageError: an unknown key, or a value that is not allowed.
        """
        if not isinstance(content, dict):
            raise UsageError(f"a mapping with the keys {', '.join(_KEYS)} is expected, not {content!r}")
        _only(content, _KEYS, "")
        for name in ("model", "fast", "out", "device"):
            if not isinstance(content.get(name, ""), str):
                raise UsageError(f"{name} is {content[name]!r}; allowed: text")
        if not content.get("model"):
            raise UsageError("the key model is missing; give the model to bundle")
        if content.get("device", "auto") not in DEVICES:
            raise UsageError(f"device is {content['device']!r}; allowed: {', '.join(DEVICES)}")
        fast = content.get("fast")
        if fast is None and "switch" in content:
            raise UsageError("a switch needs two models; give fast too, or omit switch")
        switch = None
        if fast is not None:
            switch = _section(SwitchRecipe, content.get("switch") or {}, "switch")
            _ = switch.ranks
        return cls(
            content["model"],
            fast,
            Path(content["out"]) if "out" in content else None,
            content.get("device", "auto"),
            _prune(content["prune"] or {}, paired=fast is not None) if "prune" in content else None,
            switch,
            _draft(content["draft"] or {}) if "draft" in content else None,
            _defaults(content),
            content,
        )


def _prune(section: Any, *, paired: bool) -> Settings:
    _mapping(section, "prune")
    settings = _section(Settings, {"calibration": ["zoo"]} | section, "prune")
    if paired and settings.uneven:
        raise UsageError(
            "prune.uneven is true, but uneven models cannot have a switch; omit it, or omit fast"
        )
    return settings


def _draft(section: Any) -> DraftRecipe:
    """Split the section into the fields of three classes; a field of two of them (seed) goes to both."""
    kinds: tuple[type[Any], ...] = (DrafterShape, DataSetting, TrainSetting)
    names = {kind: [one.name for one in fields(kind) if one.name != "factors"] for kind in kinds}
    _mapping(section, "draft")
    _only(section, ("texts", *dict.fromkeys(name for listed in names.values() for name in listed)), "draft.")
    texts = section.get("texts", ["zoo"])
    if not texts or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"draft.texts is {texts!r}; allowed: a list of names, such as [zoo, notes.txt]")
    shape, data, training = (
        _section(kind, {n: section[n] for n in names[kind] if n in section}, "draft") for kind in kinds
    )
    return DraftRecipe(tuple(texts), shape, data, training)


def _defaults(content: Mapping[str, Any]) -> Defaults:
    """The defaults; with ``draft_options``, the drafter's name is set now, otherwise after its training."""
    values, options = content.get("defaults") or {}, content.get("draft_options") or {}
    _mapping(values, "defaults")
    _mapping(options, "draft_options")
    if options and "draft" not in values:
        cell = (content.get("draft") or {}).get("cell")
        values = {"draft": "attention" if cell == "attention" else "hybrid", **values}
    return Defaults.of(values, options)


def _section(kind: type[T], section: Any, name: str) -> T:
    """Validate a section as an instance of ``kind``.

    Raises:
        UsageError: an unknown key, or a value of the wrong type or out of range.
    """
    _mapping(section, name)
    _only(section, [one.name for one in fields(kind)], f"{name}.")  # type: ignore[arg-type]  # a dataclass
    try:
        return TypeAdapter(kind).validate_python(section)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise UsageError(f"{where} is {first['input']!r}: {first['msg'].lower()}") from error
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _mapping(section: Any, name: str) -> None:
    if not isinstance(section, dict):
        raise UsageError(f"{name} is {section!r}; allowed: keys with their values")


def _only(section: Mapping[Any, Any], allowed: Collection[str], where: str) -> None:
    for key in section:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            meant = f" Did you mean {where}{close[0]}?" if close else ""
            raise UsageError(f"unknown key {where}{key}; allowed: {', '.join(allowed)}.{meant}")

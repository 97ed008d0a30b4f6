"""The defaults of a bundle; read in one place, so that every command behaves the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from justright.checkpoint.bundle_manifest import MANIFEST, Bundle, is_bundle
from justright.engine.chat_modes import Reasoning
from justright.engine.options import NO_SWITCH, EngineOptions
from justright.engine.sampler import TOKEN_CHOICE, SamplingParams
from justright.errors import CheckpointError, UsageError
from justright.reasoning.effort import DECIDING, FAST_EFFORTS
from justright.speculative.registry import create_drafter

SAMPLING = tuple(name for name in TOKEN_CHOICE if name != "seed")
DEFAULTS = ("draft", "effort", "max_context", *SAMPLING)
"""The names of the defaults."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """A bundle's default options; None leaves an option to the user.

    Attributes:
        draft: name of the drafter; its first use checks whether it is installed.
        draft_options: its options, without its path, which is the bundle's.
        effort: one of `justright.reasoning.effort.EFFORTS`.
        max_context: cap on the tokens of a sequence.
        sampling: fields of `SamplingParams` except the seed.

    Raises:
        UsageError: an invalid value.
    """

    draft: str | None = None
    draft_options: Mapping[str, Any] = field(default_factory=dict)
    effort: str | None = None
    max_context: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.draft, str | None) or not isinstance(self.draft_options, Mapping):
            raise UsageError(
                f"draft is {self.draft!r} with the options {self.draft_options!r}; allowed: a name, and a mapping"
            )
        if self.draft_options and self.draft is None:
            raise UsageError("there are draft options but no default drafter: set draft")
        if "path" in self.draft_options:
            raise UsageError("a bundle contains its drafter: leave out the path")
        if unknown := sorted(set(self.sampling) - set(SAMPLING)):
            raise UsageError(f"unknown sampling default {unknown[0]!r}; allowed: {', '.join(SAMPLING)}")
        for name, value in {"max_context": self.max_context, **self.sampling}.items():
            whole = name in ("max_context", "top_k")
            number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if value is not None and not number:
                raise UsageError(f"{name} is {value!r}; allowed: a {'whole ' * whole}number")
        EngineOptions(max_context=self.max_context)  # validates it
        _ = self.params, self.thinking

    @property
    def params(self) -> SamplingParams:
        """The default sampling parameters."""
        return SamplingParams(**self.sampling)

    @property
    def thinking(self) -> Reasoning:
        """The default reasoning options."""
        return Reasoning(self.effort)

    @classmethod
    def of(cls, values: Mapping[str, Any], draft_options: Mapping[str, Any]) -> Defaults:
        """The defaults of a new bundle, from names of `DEFAULTS` and their values.

        Raises:
            UsageError: an unknown name, an invalid value, or an unknown drafter.
        """
        if unknown := sorted(set(values) - set(DEFAULTS)):
            raise UsageError(f"unknown default {unknown[0]!r}; allowed: {', '.join(DEFAULTS)}")
        for name in ("draft", "effort"):
            if not isinstance(values.get(name, ""), str | None):
                raise UsageError(f"{name} is {values[name]!r}; allowed: a name")
        sampling = {name: value for name, value in values.items() if name in SAMPLING}
        rest = {name: value for name, value in values.items() if name not in SAMPLING}
        found = cls(**rest, draft_options=dict(draft_options), sampling=sampling)
        if found.draft is not None:
            EngineOptions(
                draft=found.draft, draft_options=found.draft_options
            )  # raises what loading it would raise
            create_drafter(found.draft, **found.draft_options)
        return found

    @classmethod
    def read(cls, path: Path) -> Defaults:
        """The defaults of the bundle at ``path``; empty for a plain checkpoint.

        Raises:
            CheckpointError: the manifest has a default that this version does not support.
        """
        if not is_bundle(path):
            return cls()
        found = Bundle.open(path).defaults
        try:
            return cls(**found)
        except (TypeError, UsageError) as error:
            raise CheckpointError(f"the defaults in {path / MANIFEST} are invalid: {error}") from error

    def named(self) -> dict[str, Any]:
        """The defaults that are set, in the form that `of` takes, without the drafter's options."""
        found = {name: getattr(self, name) for name in DEFAULTS if name not in SAMPLING}
        return {name: value for name, value in found.items() if value is not None} | dict(self.sampling)

    def to_dict(self) -> dict[str, Any]:
        """The defaults that are set, for the manifest."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if value not in (None, {})}


def settle(options: EngineOptions, path: Path, draft: str = "none") -> tuple[EngineOptions, Defaults]:
    """Fill in the options that ``options`` leaves open, from the bundle at ``path`` if it is one.

    Args:
        options: as the user gave them.
        path: the model's directory.
        draft: the drafter if neither user nor bundle names one.

    Returns:
        Options with the drafter set, and the bundle's defaults.

    Raises:
        CheckpointError: a damaged bundle.
    """
    defaults = Defaults.read(path)
    changes: dict[str, Any] = {}
    if defaults.draft is not None and options.draft in (None, defaults.draft):
        changes["draft"] = defaults.draft
        changes["draft_options"] = {**defaults.draft_options, **options.draft_options}
    elif options.draft is None:
        changes["draft"] = draft
    if options.max_context is None:
        changes["max_context"] = defaults.max_context
    if options.switch is None and is_bundle(path) and (switch := Bundle.open(path).part("switch")):
        changes["switch"] = str(switch)
    if options.switch == NO_SWITCH and defaults.effort in FAST_EFFORTS | DECIDING:  # other efforts need none
        defaults = replace(defaults, effort=None)
    return replace(options, **changes), defaults

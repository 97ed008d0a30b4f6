"""The sampling settings of ``generation_config.json``: the defaults of requests that sample.

Each mode has its own file: the slow mode that of the model's folder, the fast mode that of the adapter's. If the
adapter has no file, the fast mode uses the model's. The names and their meaning are transformers'
(`GenerationConfig`); as in vLLM (``--generation-config auto``), ``do_sample`` is not read: the request and the server
decide whether to sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from justright.checkpoint.mode_files import GENERATION, read_object
from justright.checkpoint.sources import resolve_adapter
from justright.engine.options import NO_SWITCH, EngineOptions
from justright.engine.sampler import SamplingParams
from justright.errors import CheckpointError, UsageError

_TAKEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GREEDY = SamplingParams()
_NEUTRAL: Mapping[str, Any] = {
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "top_h": None,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1,
    "penalty_alpha": 0,
    "dola_layers": None,
    "watermarking_config": None,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": 0,
}
"""Settings that change token choice and that the engine lacks, each with its neutral value."""


@dataclass(frozen=True, slots=True)
class FileSampling:
    """The sampling settings of one file.

    Attributes:
        file: None if none was read.
        values: fields of `SamplingParams`.
        lacking: settings that the engine lacks, with a value that is not neutral.
    """

    file: Path | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    lacking: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> FileSampling:
        """Read the folder's ``generation_config.json``; empty if there is none.

        Raises:
            CheckpointError: the file cannot be read, or has an invalid value.
        """
        file = folder / GENERATION
        found = read_object(file)
        values = {name: _number(file, name, found[name]) for name in _TAKEN if found.get(name) is not None}
        lacking = {
            name: found[name]
            for name, neutral in _NEUTRAL.items()
            if found.get(name) not in (None, [], {}, neutral)
        }
        return cls(file if file.is_file() else None, values, lacking)

    def line(self, given: Mapping[str, Any], mode: str = "") -> str | None:
        """A line for the user: the values in effect, where ``given`` takes precedence; None if there are none."""
        taken = {name: value for name, value in self.values.items() if name not in given}
        if not taken and not self.lacking:
            return None
        lacking = f"; not supported and ignored: {_words(self.lacking)}" if self.lacking else ""
        return f"sampling defaults{mode} from {self.file}: {_words(taken) or 'none'}{lacking}"


@dataclass(frozen=True, slots=True)
class ModeParams:
    """The sampling parameters of each mode."""

    slow: SamplingParams
    fast: SamplingParams

    def of(self, *, fast: bool) -> SamplingParams:
        """The parameters of one mode."""
        return self.fast if fast else self.slow


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The sampling defaults of both modes."""

    slow: FileSampling = field(default_factory=FileSampling)
    fast: FileSampling = field(default_factory=FileSampling)

    @classmethod
    def read(cls, options: EngineOptions, model: Path) -> GenerationDefaults:
        """Read those of the model in folder ``model`` and of its adapter; empty with ``generation_config="none"``.

        Raises:
            JustrightError: the adapter does not exist; see `FileSampling.read`.
        """
        if options.generation_config == "none":
            return cls()
        slow = fast = FileSampling.read(model)
        if options.switch is not None and options.switch != NO_SWITCH:
            adapter = resolve_adapter(options.switch)
            if (adapter / GENERATION).is_file():
                fast = FileSampling.read(adapter)
        return cls(slow, fast)

    def params(
        self,
        given: Mapping[str, Any],
        otherwise: SamplingParams = _GREEDY,
    ) -> ModeParams:
        """``given``, then the file, then ``otherwise``; the file does not count if the other two are greedy.

        Args:
            given: fields of `SamplingParams` that were set explicitly.
            otherwise: the fallback for fields that neither sets.

        Raises:
            UsageError: an invalid value.
        """
        params = replace(otherwise, **given)
        if params.greedy:
            return ModeParams(params, params)
        slow, fast = (replace(otherwise, **{**one.values, **given}) for one in (self.slow, self.fast))
        return ModeParams(slow, fast)

    def lines(self, given: Mapping[str, Any], *, sampling: bool) -> list[str]:
        """Lines for the user at startup.

        Args:
            given: values that override the files.
            sampling: whether requests sample by default; if not, the lines say how to.
        """
        if not sampling:
            if not self.slow.values and not self.fast.values:
                return []
            file = self.slow.file if self.slow.values else self.fast.file
            return [
                f"greedy decoding: the sampling settings in {file} do not apply (give --temperature to sample)"
            ]
        if self.slow == self.fast:
            found = [self.slow.line(given)]
        else:
            found = [self.slow.line(given, " of slow mode"), self.fast.line(given, " of fast mode")]
        return [line for line in found if line is not None]


def _number(file: Path, name: str, value: Any) -> float:
    """Validate a value of a `SamplingParams` field."""
    try:
        if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
            allowed = "a whole number" if name == "top_k" else "a number"
            raise UsageError(f"{name} is {value!r}; allowed: {allowed}")
        number: float = value if name == "top_k" else float(value)
        field_of: dict[str, Any] = {name: number}
        SamplingParams(**field_of)
    except (OverflowError, UsageError) as error:
        raise CheckpointError(
            f"{file} is invalid: {error}. Correct the file, or ignore its sampling settings "
            "(--generation-config none)"
        ) from error
    return number


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

"""The sampling settings of ``generation_config.json``: the defaults of requests that sample.

Each mode of a switch has its own file: the model's folder that of the slow mode, the adapter's that of the fast one. An
adapter without the file leaves the fast mode to the model's. The names and their meaning are transformers'
(`GenerationConfig`); as in vLLM (``--generation-config auto``), ``do_sample`` is not read: whether a request samples is
the request's and the server's matter.
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
"""Settings that change which token is chosen and that the engine lacks, with the value that changes nothing."""


@dataclass(frozen=True, slots=True)
class FileSampling:
    """What one file says of sampling.

    Attributes:
        file: None where none was read.
        values: fields of `SamplingParams`.
        lacking: settings that the engine lacks, with a value that would change something.
    """

    file: Path | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    lacking: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> FileSampling:
        """Of the folder's ``generation_config.json``; nothing where there is none.

        Raises:
            CheckpointError: the file cannot be read, or has a value that is not allowed.
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
        """What a person should know: which of the values are taken where ``given`` goes before; None: nothing."""
        taken = {name: value for name, value in self.values.items() if name not in given}
        if not taken and not self.lacking:
            return None
        lacking = f"; ignored, as the engine lacks them: {_words(self.lacking)}" if self.lacking else ""
        return f"sampling defaults{mode} from {self.file}: {_words(taken) or 'none'}{lacking}"


@dataclass(frozen=True, slots=True)
class ModeParams:
    """How tokens are chosen in each mode."""

    slow: SamplingParams
    fast: SamplingParams

    def of(self, *, fast: bool) -> SamplingParams:
        """Those of one mode."""
        return self.fast if fast else self.slow


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The sampling defaults of both modes."""

    slow: FileSampling = field(default_factory=FileSampling)
    fast: FileSampling = field(default_factory=FileSampling)

    @classmethod
    def read(cls, options: EngineOptions, model: Path) -> GenerationDefaults:
        """Of the model in folder ``model``, and of its switch; nothing with ``generation_config="none"``.

        Raises:
            JustrightError: there is no such adapter; see `FileSampling.read`.
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
        """``given`` before the file before ``otherwise``; where these two make it greedy, the file does not count.

        Args:
            given: fields of `SamplingParams` that somebody set.
            otherwise: what holds where neither says anything.

        Raises:
            UsageError: a value that is not allowed.
        """
        asked = replace(otherwise, **given)
        if asked.greedy:
            return ModeParams(asked, asked)
        slow, fast = (replace(otherwise, **{**one.values, **given}) for one in (self.slow, self.fast))
        return ModeParams(slow, fast)

    def lines(self, given: Mapping[str, Any], *, sampling: bool) -> list[str]:
        """What a person should know at the start.

        Args:
            given: what goes before the files.
            sampling: whether anything samples; else the lines say how to.
        """
        if not sampling:
            if not self.slow.values and not self.fast.values:
                return []
            file = self.slow.file if self.slow.values else self.fast.file
            return [f"greedy: the sampling settings in {file} do not apply (--temperature samples)"]
        if self.slow == self.fast:
            found = [self.slow.line(given)]
        else:
            found = [self.slow.line(given, " of slow mode"), self.fast.line(given, " of fast mode")]
        return [line for line in found if line is not None]


def _number(file: Path, name: str, value: Any) -> float:
    """A value that `SamplingParams` takes."""
    try:
        if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
            allowed = "a whole number" if name == "top_k" else "a number"
            raise UsageError(f"{name} is {value!r}; allowed: {allowed}")
        number = value if name == "top_k" else float(value)
        one: dict[str, Any] = {name: number}
        SamplingParams(**one)  # checks it
    except (OverflowError, UsageError) as error:
        raise CheckpointError(
            f"{file} cannot be used: {error}. Correct the file, or leave its sampling settings out "
            "(--generation-config none)"
        ) from error
    return number


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

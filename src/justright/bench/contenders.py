"""Contenders: the engine with and without drafts, transformers' ``generate`` with and without prompt lookup.

Every contender decodes greedily, ignores end tokens, and generates the same number of tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from justright.engine.defaults import Defaults
from justright.engine.llm import LLM
from justright.engine.loading import load_model
from justright.engine.sampler import SamplingParams
from justright.engine.step import StepInput
from justright.errors import UsageError
from justright.provenance import file_sha256
from justright.readable import key_values
from justright.speculative.registry import drafter_names
from justright.speculative.store import WEIGHTS

PLAIN = "plain"
TRANSFORMERS = "transformers"
LOOKUP = "transformers-lookup"
LOOKUP_TOKENS = 10
"""Prompt lookup's ``prompt_lookup_num_tokens``, as in transformers' documentation."""
CHUNK = 1024
"""Prompt tokens per forward in transformers for models with sliding windows; see `read_in_chunks`."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation.

    Attributes:
        token_ids: generated tokens.
        prefill_s: time to the first tokens; None if the prompt was already in the cache.
        first_tokens: number of first tokens (prompt lookup drafts from the start).
        decode_s: time after the first tokens.
        verifications: forwards after the first tokens.
        near_ties: tokens chosen within floating-point noise; None if the contender does not report it.
        draft_s: part of ``decode_s`` spent on drafting; justright only.
        verify_s: part of ``decode_s`` spent on verification; justright only.
        steps: per verification: output position, tokens drafted, tokens accepted; justright only.
    """

    token_ids: list[int]
    prefill_s: float | None
    first_tokens: int
    decode_s: float
    verifications: int
    near_ties: int | None = None
    draft_s: float = 0.0
    verify_s: float = 0.0
    steps: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first ones, per second of decoding."""
        return (len(self.token_ids) - self.first_tokens) / max(self.decode_s, 1e-9)

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification: accepted + 1."""
        return (len(self.token_ids) - self.first_tokens) / max(self.verifications, 1)


class Contender(Protocol):
    """One way to decode."""

    name: str

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Generation:
        """Generate exactly ``tokens`` tokens after a prompt, greedily.

        With ``again`` the prompt is taken from the cache of an earlier run if it is there, so that repeats measure
        decoding only; otherwise the prompt is computed again.
        """
        ...


class EngineContender:
    """justright's engine; ``name`` is the drafter's, or ``plain``."""

    def __init__(self, name: str, engine: LLM) -> None:
        self.name = name
        self.engine = engine

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Generation:
        """See `Contender`."""
        if not again:
            self.engine.verifier.clear(0)
        request = self.engine.generate_request(
            prompt_ids, SamplingParams(), max_tokens=tokens, ignore_eos=True
        )
        stats = request.stats
        return Generation(
            request.token_ids,
            None if stats.reused_tokens else stats.prefill_s,
            1,
            stats.decode_s,
            stats.verifications,
            stats.near_ties,
            stats.draft_s,
            stats.verify_s,
            list(stats.steps),
        )


class TransformersContender:
    """transformers' own ``generate``: SDPA attention, dynamic cache, end tokens ignored.

    Args:
        name: ``transformers`` or ``transformers-lookup``.
        model: see `load_transformers`.
    """

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        self.name = name
        self.model = model
        self._options: dict[str, Any] = {}
        self._kept: tuple[tuple[int, ...], Any] | None = None
        if name == LOOKUP:
            self._options["prompt_lookup_num_tokens"] = LOOKUP_TOKENS

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Generation:
        """See `Contender`."""
        ids = torch.tensor([list(prompt_ids)], device=self.model.device)
        cache = self._cache(prompt_ids) if again else None
        self._kept = None
        clock = _Clock()
        hook = self.model.register_forward_hook(clock.on_forward)
        begin = time.perf_counter()
        try:
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                use_cache=True,
                past_key_values=cache,
                return_dict_in_generate=True,
                streamer=clock,
                **self._options,
            )
        finally:
            hook.remove()
        end = time.perf_counter()
        if self.name != LOOKUP:
            self._kept = (tuple(prompt_ids), output.past_key_values)
        return Generation(
            output.sequences[0, ids.shape[1] :].tolist(),
            None if cache is not None else clock.first_s - begin,
            clock.first_tokens,
            end - clock.first_s,
            clock.verifications,
        )

    def _cache(self, prompt_ids: Sequence[int]) -> Any:
        """The last run's cache, cropped to all but the last token of the prompt, if the prompt is the same.

        None for prompt lookup: with a filled cache, assisted ``generate`` (5.23) appends the whole prompt again, and
        its output is wrong. None with sliding windows, whose older keys and values are lost.
        """
        if self.name == LOOKUP or self._kept is None or self._kept[0] != tuple(prompt_ids):
            return None
        cache = self._kept[1]
        if any(cache.is_sliding):
            return None
        surplus = cache.get_seq_length() - (len(prompt_ids) - 1)
        if surplus > 0:
            cache.crop(-surplus)
        return cache


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped here
    """Records when the first tokens come, how many they are, and how many forwards follow."""

    def __init__(self) -> None:
        self.verifications = 0
        self.first_s = 0.0
        self.first_tokens = 0
        self._prompt = True

    def on_forward(self, *_: Any) -> None:
        """A forward hook of the model. Forwards before the first tokens belong to the prompt."""
        self.verifications += self.first_tokens > 0

    def put(self, value: Tensor) -> None:
        """Receive new tokens; the first call has the prompt."""
        if self._prompt:
            self._prompt = False
        elif not self.first_tokens:
            self.first_s = time.perf_counter()
            self.first_tokens = value.numel()

    def end(self) -> None:
        """Do nothing: `BaseStreamer` requires it."""


@dataclass(frozen=True, slots=True)
class ContenderName:
    """A contender in the form ``[LABEL=]NAME[:OPTION=VALUE;...]``.

    Attributes:
        label: name in tables.
        name: ``plain``, a drafter, or one of transformers'.
        options: of the drafter.
    """

    label: str
    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> ContenderName:
        """Parse a name; raises `UsageError` for malformed options."""
        name, _, listed = text.partition(":")
        alias, equals, rest = name.partition("=")
        options = key_values(listed.split(";"), f"contender {name}:") if listed else {}
        return cls(alias if equals else text, rest if equals else name, options)

    def meaning(self) -> dict[str, Any]:
        """What the label stands for: name, options, and the hash of the drafter at a path."""
        found: dict[str, Any] = {"name": self.name, **self.options}
        weights = Path(str(self.options.get("path", ""))) / WEIGHTS
        return found | ({"sha256": file_sha256(weights)} if weights.is_file() else {})


def check_names(names: Sequence[str]) -> None:
    """Validate the names of contenders.

    Raises:
        UsageError: no name, a name given twice, or an unknown one.
    """
    known = [PLAIN, *(name for name in drafter_names() if name != "none"), TRANSFORMERS, LOOKUP]
    choices = [ContenderName.parse(name) for name in names]
    for choice in choices:
        if choice.name not in known:
            raise UsageError(f"no contender is called {choice.name!r}; allowed: {', '.join(known)}")
        fixed = choice.name in (PLAIN, TRANSFORMERS, LOOKUP)
        if fixed and (choice.options or choice.label != choice.name):
            raise UsageError(f"{choice.name} has an option or a label, but is a baseline; give its name only")
    if not names or len({choice.label for choice in choices}) != len(names):
        raise UsageError("name each contender once, and at least one")


def load_transformers(path: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model as transformers runs it by default, except for `read_in_chunks` and ignored end tokens."""
    model = load_model(path, dtype=dtype, device=device, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    model.register_forward_pre_hook(read_in_chunks, with_kwargs=True)
    return model.eval()


def read_in_chunks(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A forward pre-hook that computes a long prompt `CHUNK` tokens at a time if the cache has sliding windows.

    In a single forward, every window is a mask over the whole prompt: minutes and gigabytes at 32K tokens.
    ``generate``'s own ``prefill_chunk_size`` does the same, but not for prompt lookup. Only the prefill changes, whose
    time is reported separately.
    """
    ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
    last = max(CHUNK, kwargs.get("logits_to_keep") or 0)
    if ids is None or cache is None or ids.shape[1] <= last or not any(cache.is_sliding):
        return None
    past, whole = cache.get_seq_length(), ids.shape[1]

    def part(begin: int, end: int) -> dict[str, Any]:
        found = kwargs | {"input_ids": ids[:, begin:end]}
        if (mask := kwargs.get("attention_mask")) is not None:
            found["attention_mask"] = mask[:, : past + end]
        if (positions := kwargs.get("position_ids")) is not None:
            found["position_ids"] = positions[..., begin:end]
        return found

    for begin in range(0, whole - last, CHUNK):
        model(*args, **part(begin, min(begin + CHUNK, whole - last)) | {"logits_to_keep": 1})
    return args, part(whole - last, whole)


def bundled_choice(path: Path) -> str | None:
    """The default drafter of a bundle in the form of `ContenderName`; None if it has none."""
    defaults = Defaults.read(path)
    if defaults.draft is None or not defaults.draft_options:
        return defaults.draft
    options = ";".join(f"{name}={json.dumps(value)}" for name, value in defaults.draft_options.items())
    return f"{defaults.draft}:{options}"


def engine_contender(choice: ContenderName, engine: LLM) -> EngineContender:
    """A contender of justright on a loaded engine."""
    if choice.name == PLAIN:
        return EngineContender(choice.label, engine.with_draft("none"))
    return EngineContender(choice.label, engine.with_draft(choice.name, **choice.options))


@torch.inference_mode()
def transformers_logits(
    model: PreTrainedModel, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Tensor:
    """The logits that predict each output token, by transformers: ``[output, vocab]``."""
    ids = torch.tensor([[*prompt_ids, *output_ids]], device=model.device)
    cache = DynamicCache(config=model.config)
    keep = len(output_ids) + 1
    logits: Tensor = model(input_ids=ids, past_key_values=cache, logits_to_keep=keep).logits[0, :-1]
    return logits


@torch.inference_mode()
def engine_logits(engine: LLM, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Tensor:
    """`transformers_logits` by justright's verifier: a prefill, then the output in one step."""
    verifier = engine.verifier
    verifier.clear(0)
    *_, prefilled = verifier.prefill(0, prompt_ids)
    try:
        assert prefilled is not None
        if len(output_ids) == 1:
            return prefilled.logits
        [output] = verifier.step([StepInput(0, output_ids[:-1])])
        return torch.cat([prefilled.logits, output.logits])
    finally:
        verifier.clear(0)

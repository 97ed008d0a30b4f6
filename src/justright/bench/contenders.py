"""Who is measured: our loop with and without drafts, transformers' ``generate`` with and without prompt lookup.

Every contender decodes greedily, goes on behind end tokens, and emits the same number of tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from justright.draft.registry import drafter_names
from justright.draft.store import WEIGHTS
from justright.engine.api import Engine
from justright.engine.defaults import Defaults
from justright.engine.sampling import SamplingParams
from justright.engine.step import StepInput
from justright.errors import UsageError
from justright.provenance import file_sha256
from justright.readable import key_values

PLAIN = "plain"
TRANSFORMERS = "transformers"
LOOKUP = "transformers-lookup"
LOOKUP_TOKENS = 10
"""Prompt lookup's ``prompt_lookup_num_tokens``: what transformers' documentation uses."""


@dataclass(frozen=True, slots=True)
class Run:
    """One generation.

    Attributes:
        token_ids: what was emitted.
        prefill_s: until the first tokens were there; None if the prompt was in the cache already.
        first_tokens: how many they were (prompt lookup drafts already then).
        decode_s: from then on to the end.
        verifications: forwards after the first.
        near_ties: tokens chosen within floating-point noise; None where the contender cannot tell.
        draft_s: of ``decode_s``, drafting; ours only.
        verify_s: of ``decode_s``, verifying; ours only.
        steps: per verification: output position, tokens drafted, tokens accepted; ours only.
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
        """Tokens behind the first ones, per second of decoding."""
        return (len(self.token_ids) - self.first_tokens) / max(self.decode_s, 1e-9)

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification: accepted + 1."""
        return (len(self.token_ids) - self.first_tokens) / max(self.verifications, 1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the derived figures."""
        return asdict(self)


class Contender(Protocol):
    """One way to decode."""

    name: str

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Run:
        """Emit exactly ``tokens`` tokens behind a prompt, greedily.

        ``again`` takes the prompt from the cache of an earlier run where it is there, so that repeats measure
        decoding alone; without it the prompt is run anew.
        """
        ...


class EngineContender:
    """Our engine; ``name`` is the drafter's, or ``plain``."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Run:
        """See `Contender`."""
        if not again:
            self.engine.verifier.clear(0)
        request = self.engine.generate(prompt_ids, SamplingParams(), max_tokens=tokens, ignore_eos=True)
        stats = request.stats
        return Run(
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

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Run:
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
        return Run(
            output.sequences[0, ids.shape[1] :].tolist(),
            None if cache is not None else clock.first_s - begin,
            clock.first_tokens,
            end - clock.first_s,
            clock.forwards - 1,
        )

    def _cache(self, prompt_ids: Sequence[int]) -> Any:
        """The last run's cache cut back to this prompt but for its last token, if it was the same prompt.

        Never for prompt lookup: given a filled cache, assisted ``generate`` (5.23) runs the whole prompt
        behind it once more, and its output is wrong.
        """
        if self.name == LOOKUP or self._kept is None or self._kept[0] != tuple(prompt_ids):
            return None
        cache = self._kept[1]
        surplus = cache.get_seq_length() - (len(prompt_ids) - 1)
        if surplus > 0:
            cache.crop(-surplus)
        return cache


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped here
    """Notes when the first tokens come, how many they are, and how many forwards there were."""

    def __init__(self) -> None:
        self.forwards = 0
        self.first_s = 0.0
        self.first_tokens = 0
        self._prompt = True

    def on_forward(self, *_: Any) -> None:
        """A forward hook of the model."""
        self.forwards += 1

    def put(self, value: Tensor) -> None:
        """New tokens; the first call has the prompt."""
        if self._prompt:
            self._prompt = False
        elif self.forwards == 1:
            self.first_s = time.perf_counter()
            self.first_tokens += value.numel()

    def end(self) -> None:
        """No more come."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A contender as users name it: ``[LABEL=]NAME[:OPTION=VALUE;...]``.

    Attributes:
        label: what tables call it.
        name: ``plain``, a drafter, or one of transformers'.
        options: of the drafter.
    """

    label: str
    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Raises `UsageError` for what is none."""
        name, _, listed = text.partition(":")
        alias, equals, rest = name.partition("=")
        options = key_values(listed.split(";"), f"contender {name}:") if listed else {}
        return cls(alias if equals else text, rest if equals else name, options)

    def meaning(self) -> dict[str, Any]:
        """What tells it from others of the same label: name, options, and which drafter lies at a path."""
        found: dict[str, Any] = {"name": self.name, **self.options}
        weights = Path(str(self.options.get("path", ""))) / WEIGHTS
        return found | ({"sha256": file_sha256(weights)} if weights.is_file() else {})


def check_names(names: Sequence[str]) -> None:
    """Refuse unknown contenders.

    Raises:
        UsageError: none at all, one twice, or an unknown one.
    """
    known = [PLAIN, *(name for name in drafter_names() if name != "none"), TRANSFORMERS, LOOKUP]
    choices = [Choice.parse(name) for name in names]
    for choice in choices:
        if choice.name not in known:
            raise UsageError(f"no contender is called {choice.name!r}; there are: {', '.join(known)}")
        fixed = choice.name in (PLAIN, TRANSFORMERS, LOOKUP)
        if fixed and (choice.options or choice.label != choice.name):
            raise UsageError(
                f"{choice.name} has no options and no label of its own: others are measured against it"
            )
    if not names or len({choice.label for choice in choices}) != len(names):
        raise UsageError("name each contender once, and at least one")


def load_transformers(path: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model as transformers runs it by default, with end tokens that do not end anything."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    ).to(device)
    model.generation_config.eos_token_id = None
    return model.eval()


def bundled_choice(path: Path) -> str | None:
    """The drafter that a bundle runs by default, as users name it; None where it has none."""
    defaults = Defaults.read(path)
    if defaults.draft is None or not defaults.draft_options:
        return defaults.draft
    options = ";".join(f"{name}={json.dumps(value)}" for name, value in defaults.draft_options.items())
    return f"{defaults.draft}:{options}"


def engine_contender(choice: Choice, engine: Engine) -> EngineContender:
    """A contender of ours on a loaded engine."""
    if choice.name == PLAIN:
        return EngineContender(choice.label, engine.with_draft("none"))
    return EngineContender(choice.label, engine.with_draft(choice.name, **choice.options))


@torch.inference_mode()
def transformers_logits(
    model: PreTrainedModel, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Tensor:
    """What the model says before each output token, in one forward of transformers: ``[output, vocab]``."""
    ids = torch.tensor([[*prompt_ids, *output_ids]], device=model.device)
    logits: Tensor = model(ids, use_cache=False, logits_to_keep=len(output_ids) + 1).logits[0, :-1]
    return logits


@torch.inference_mode()
def engine_logits(engine: Engine, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Tensor:
    """The same by our verifier: a prefill, then the output in one step."""
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

"""What is checked of a model, its adapter and its drafter before the weights are read."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter, read_adapter
from justright.architectures.spec import ModelSpec
from justright.checkpoint.mode_files import read_end_tokens
from justright.checkpoint.sources import resolve_adapter
from justright.engine.model_runner import Verifier
from justright.engine.options import NO_SWITCH, EngineOptions
from justright.errors import UnsupportedModelError
from justright.speculative.base import Drafter


def bind(drafter: Drafter | None, verifier: Verifier, path: Path | None) -> None:
    """Give the verifier to the drafter, if there is one.

    Raises:
        JustrightError: it is for another model, or there is none for this one.
    """
    if drafter is not None:
        drafter.bind(verifier.model, path)


def switch_of(options: EngineOptions, model: Path) -> Adapter | None:
    """The adapter that ``options`` name, checked by `read_switch`; None where they name none."""
    switch = options.switch
    return None if switch is None or switch == NO_SWITCH else read_switch(switch, model)


def read_switch(switch: str, model: Path) -> Adapter:
    """Read an adapter and check that it is for ``model``, before any weight of the model is read.

    Raises:
        JustrightError: see `resolve_adapter`, `read_adapter` and `Adapter.check_base`.
    """
    adapter = read_adapter(resolve_adapter(switch))
    adapter.check_base(model)
    return adapter


def check_model(path: Path) -> ModelSpec:
    """Refuse an unsupported or damaged checkpoint by its config and headers, before any weight is read.

    Returns:
        What the model is.

    Raises:
        UnsupportedModelError: see `ModelSpec.of`; quantised weights.
        CheckpointError: a missing or truncated shard, a broken config.
    """
    from justright.checkpoint.reader import Checkpoint
    from justright.model.decoder_layer import refuse_quantised

    with Checkpoint.open(path) as checkpoint:
        spec = checkpoint.spec
        refuse_quantised(checkpoint)
    if not spec.architecture.stock:
        raise UnsupportedModelError(
            f"{spec.architecture.family} has no class in transformers, so it can be inspected and pruned but not run"
        )
    return spec


def end_tokens(path: Path, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """End tokens of the slow mode: by the model's configs, as transformers stops there, else the tokenizer's."""
    own = tokenizer.eos_token_id
    return read_end_tokens(path) or frozenset([] if own is None else [own])

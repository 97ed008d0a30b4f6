"""What is checked of a model, its adapter and its drafter before the weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter, read_adapter
from justright.architectures.spec import ModelSpec
from justright.checkpoint.mode_files import read_end_tokens
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import resolve_adapter
from justright.errors import ResourceError, UnsupportedModelError, UsageError
from justright.model.decoder_layer import refuse_quantised


def read_switch(switch: str, model: Path | Checkpoint) -> Adapter:
    """Read an adapter and check that it is for ``model``, before any weight of the model is read.

    Raises:
        JustrightError: see `resolve_adapter`, `read_adapter` and `Adapter.check_base`.
    """
    adapter = read_adapter(resolve_adapter(switch))
    adapter.check_base(Checkpoint.open(model))
    return adapter


def check_model(path: Path | Checkpoint) -> ModelSpec:
    """Refuse an unsupported or damaged checkpoint by its config and headers, before any weight is read.

    Returns:
        What the model is.

    Raises:
        UnsupportedModelError: see `ModelSpec.of`; quantised weights.
        CheckpointError: a missing or truncated shard, a broken config.
    """
    with Checkpoint.open(path) as checkpoint:
        spec = checkpoint.spec
        refuse_quantised(checkpoint)
    if not spec.architecture.stock:
        raise UnsupportedModelError(
            f"{spec.architecture.family} has no class in transformers, so it can be inspected and pruned but not run"
        )
    return spec


def check_prompt(ids: Sequence[int], context: int, what: str = "the prompt") -> None:
    """Check that a prompt has a token, and leaves room in the context for at least one token of the answer.

    Raises:
        UsageError: it is empty.
        ResourceError: it leaves no room.
    """
    if not ids:
        raise UsageError(f"{what} is empty: give at least one token of text")
    if len(ids) >= context:
        raise ResourceError(
            f"{what} has {len(ids)} tokens; the context holds {context}, with at least one for the answer: shorten "
            "it, or use a longer context"
        )


def end_tokens(
    path: Path, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any] | None = None
) -> frozenset[int]:
    """End tokens of the slow mode: by the model's configs, as transformers stops there, else the tokenizer's.

    ``config`` is its ``config.json``, if it is read already.
    """
    own = tokenizer.eos_token_id
    return read_end_tokens(path, config) or frozenset([] if own is None else [own])

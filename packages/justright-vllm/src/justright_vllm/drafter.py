"""justright's drafters as a custom class of vLLM: chains of the LSTM or of the hybrid with suffix drafts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justright.errors import UsageError
from justright.serve.vllm.plugin import FIXED, VARIABLE, chain
from justright.speculative.base import Draft
from justright.speculative.lstm_drafter import LstmDrafter
from justright.speculative.registry import create_drafter
from justright_vllm import problem


@dataclass(frozen=True, slots=True)
class _Weight:
    weight: Tensor


@dataclass(frozen=True, slots=True)
class _Verifier:
    """The part of vLLM's model that a drafter needs."""

    embedding: Tensor
    head: Tensor

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def get_input_embeddings(self) -> _Weight:
        return _Weight(self.embedding)

    def get_output_embeddings(self) -> _Weight:
        return _Weight(self.head)


class ChainDrafter:
    """The class that vLLM calls: `load_model` once, then in every step `take_states` (from the plugin) and `propose`.

    Requests start and stop with vLLM's batch; one that returns is started again from its tokens.

    Args:
        vllm_config: vLLM's.

    Raises:
        UsageError: an untested vLLM, a model split over devices, or a missing setting of the drafter.
    """

    wants_states = True

    def __init__(self, vllm_config: Any) -> None:
        if (reason := problem()) is not None:
            raise UsageError(f"justright's drafter cannot run in this vLLM: {reason}")
        parallel = vllm_config.parallel_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise UsageError("justright's drafter does not support tensor or pipeline parallelism; omit both")
        self._length = vllm_config.speculative_config.num_speculative_tokens
        self._max_tokens = vllm_config.model_config.max_model_len
        self._vocab_size = vllm_config.model_config.get_vocab_size()
        try:
            setting = json.loads(os.environ.get(VARIABLE, ""))
            self._path = Path(setting["model"])
            self.drafter = chain_drafter(setting["draft"], setting["options"], self._length)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{VARIABLE} sets no drafter; start vLLM with justright serve") from error
        self._drafts: dict[str, Draft] = {}
        self._ids: list[str] = []
        self._states: list[Tensor | None] = []

    def load_model(self, model: torch.nn.Module) -> None:
        """Load the drafter, and bind it to vLLM's model."""
        named = {name.replace(".base_layer", ""): tensor for name, tensor in model.named_parameters()}
        embedding = next(t for name, t in named.items() if name.endswith("embed_tokens.weight"))
        head = next((t for name, t in named.items() if name.endswith("lm_head.weight")), embedding)
        rows = slice(0, self._vocab_size)  # without vLLM's padding
        verifier = _Verifier(embedding.detach()[rows], head.detach()[rows])
        self.drafter.bind(verifier, self._path)

    def take_states(
        self, batch: Any, sampled: Sequence[Sequence[int]], states: Tensor, drafts: Sequence[int] | None
    ) -> None:
        """Record the requests of the batch, and the state that predicted the last token of each.

        Args:
            batch: vLLM's.
            sampled: new tokens of each request; none during its prefill.
            states: ``[rows, hidden_size]``; each request has one row more than draft tokens.
            drafts: number of draft tokens of each request; None if there were none.
        """
        self._ids = list(batch.req_ids[: len(sampled)])
        self._states, row = [], 0
        for index, tokens in enumerate(sampled):
            self._states.append(states[row + len(tokens) - 1].clone() if tokens else None)
            row += 1 + (0 if drafts is None else drafts[index])
        for gone in self._drafts.keys() - set(batch.req_id_to_index):
            self.drafter.stop(gone)
            del self._drafts[gone]

    def propose(
        self, sampled: Sequence[Sequence[int]], lengths: Any, tokens: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Draft a chain for each request; it may be empty.

        Args:
            sampled: new tokens of each request.
            lengths: number of tokens of each request, with the new ones.
            tokens: ``[requests, max tokens]``, all tokens.
            slot_mappings: unused.
        """
        found: list[list[int]] = []
        for index, (name, new) in enumerate(zip(self._ids, sampled, strict=True)):
            length = int(lengths[index])
            capacity = min(self._length, self._max_tokens - length - 1)
            if not new or capacity < 1:
                found.append([])
                continue
            if name not in self._drafts:
                self.drafter.start(name, tokens[index, : length - len(new)].tolist())
            elif len(self._drafts[name]):
                self.drafter.verified(name, self._drafts[name], len(new) - 1)
            self.drafter.observe(name, list(new), self._states[index])
            draft = self.drafter.propose(name, capacity)
            self._drafts[name] = draft
            found.append(list(draft.token_ids))
        return found


def chain_drafter(draft: str, options: dict[str, Any], length: int) -> LstmDrafter:
    """A drafter whose drafts are chains of at most ``length`` tokens, without [SPEC].

    Raises:
        UsageError: another drafter, or options that it does not have.
    """
    if draft not in ("lstm", "hybrid"):
        raise UsageError(f"{draft} drafts do not run in vLLM; allowed: lstm, hybrid")
    if fixed := sorted(FIXED & set(options)):
        raise UsageError(f"vLLM verifies chains without [SPEC]; omit {', '.join(fixed)}")
    try:
        made = create_drafter(draft, **chain(length), **options)
    except UsageError as error:
        raise UsageError(f"the options of {draft} drafts are not valid: {error}") from error
    assert isinstance(made, LstmDrafter)
    return made

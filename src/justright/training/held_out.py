"""Accuracy of a drafter on held-out prompts, by draft step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from justright.adapter.apply import AppliedSwitch
from justright.speculative.attention_drafter import Context, grow_tree
from justright.speculative.attention_network import AttentionModel
from justright.speculative.base import Draft
from justright.speculative.lstm_drafter import FastLstm
from justright.speculative.lstm_network import LstmModel
from justright.speculative.tree import TreeShape
from justright.speculative.tuning import DEPTH, NODES, WIDTHS, TreeTable
from justright.training.loss import Prefixes, prefixes
from justright.training.shard import Shard
from justright.training.spec_token import states_after

_EVERY = 4
_TOP = 4
_TREES = 150
_Grow = Callable[[TreeShape], Draft]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy on held-out prompts.

    Attributes:
        steps: per step, the share of guesses (after the right tokens) that equal the verifier's most likely token.
        top: the same for the drafter's four most likely tokens.
        length: acceptance length of a chain of the most likely guesses against sampled text.
        spec_steps: as ``steps``, from [SPEC]'s states; None without [SPEC].
        spec_length: as ``length``, from [SPEC]'s states.
    """

    steps: list[float]
    top: list[float]
    length: float
    spec_steps: list[float] | None = None
    spec_length: float | None = None


@torch.no_grad()
def measure(
    model: LstmModel,
    shards: Iterable[Shard],
    verifier: PreTrainedModel | None,
    device: torch.device,
    switch: AppliedSwitch | None = None,
) -> Accuracy:
    """Accuracy on every fourth prefix of the shards; with ``verifier`` also from [SPEC]'s states (every 16th)."""
    plain, spec = _Counts(model), _Counts(model)
    for shard in shards:
        for begin in range(0, len(shard.tokens), 16):
            rows = torch.arange(begin, min(begin + 16, len(shard.tokens)))
            batch = prefixes(shard, rows, model.config.steps)
            batch = batch.take(torch.arange(begin % _EVERY, len(batch.tokens), _EVERY))
            if not len(batch.tokens):
                continue
            plain.add(batch, batch.hidden, device)
            if verifier is not None and model.spec is not None:
                fewer = batch.take(torch.arange(0, len(batch.tokens), _EVERY))
                states = states_after(verifier, model.spec, shard, fewer, device, switch)
                spec.add(fewer, states, device)
    steps, top, length = plain.shares()
    if not spec.prefixes:
        return Accuracy(steps, top, length)
    spec_steps, _, spec_length = spec.shares()
    return Accuracy(steps, top, length, spec_steps, spec_length)


@torch.no_grad()
def measure_trees(
    model: LstmModel,
    shards: Iterable[Shard],
    verifier: PreTrainedModel | None,
    device: torch.device,
    switch: AppliedSwitch | None = None,
) -> TreeTable:
    """Tokens of sampled text that trees of each shape would have had accepted, over some hundred prefixes.

    Drafts start from [SPEC]'s states with a ``verifier``, else from plain ones.
    """
    fast = FastLstm(model, device)

    def growers(shard: Shard, batch: Prefixes) -> Iterator[_Grow]:
        states = batch.hidden
        if verifier is not None and model.spec is not None:
            parts = torch.split(torch.arange(len(batch.tokens)), 16)
            own = [
                states_after(verifier, model.spec, shard, batch.take(p), device, switch).cpu() for p in parts
            ]
            states = torch.cat(own)
        for token, state in zip(batch.tokens[:, 0].tolist(), states.to(device), strict=True):
            yield partial(fast.grow, state, token)

    return _table(shards, growers)


@torch.no_grad()
def measure_attention_trees(
    model: AttentionModel, shards: Iterable[Shard], device: torch.device
) -> TreeTable:
    """`measure_trees` for the attention baseline, whose context is the output up to each prefix."""

    def growers(shard: Shard, batch: Prefixes) -> Iterator[_Grow]:
        for sequence, position in zip(batch.sequence.tolist(), batch.position.tolist(), strict=True):
            # The drafter's rows are pairs of a token and the state that predicted it.
            context = Context([0, *shard.tokens[sequence, : position + 1].tolist()])
            context.waiting.append(shard.hidden[sequence, : position + 1].to(device).float())
            context.catch_up(model)
            yield partial(grow_tree, model, context)

    return _table(shards, growers)


def _table(shards: Iterable[Shard], growers: Callable[[Shard, Prefixes], Iterable[_Grow]]) -> TreeTable:
    """Grow trees of each width after some prefixes of each shard; ``growers`` gives a prefix's function."""
    hits: dict[int, list[list[tuple[int, int]]]] = {width: [] for width in WIDTHS}
    for shard in shards:
        batch = prefixes(shard, torch.arange(len(shard.tokens)), DEPTH)
        if not len(batch.tokens):
            continue
        batch = batch.take(torch.linspace(0, len(batch.tokens) - 1, min(_TREES, len(batch.tokens))).long())
        for row, grow in enumerate(growers(shard, batch)):
            targets = batch.targets[row][batch.valid[row]].tolist()
            for width in WIDTHS:
                hits[width].append(_right_path(grow(TreeShape(NODES, DEPTH, width)), targets))
    return TreeTable.of(hits)


def _right_path(draft: Draft, targets: list[int]) -> list[tuple[int, int]]:
    """(level, index) of the nodes of a draft that follow ``targets``."""
    found, parent = [], -1
    for level, token in enumerate(targets):
        pairs = enumerate(zip(draft.token_ids, draft.parents, strict=True))
        child = next((i for i, (t, p) in pairs if p == parent and t == token), None)
        if child is None:
            break
        found.append((level, child))
        parent = child
    return found


class _Counts:
    def __init__(self, model: LstmModel) -> None:
        self.model = model
        self.prefixes = 0
        zeros = [0.0] * model.config.steps
        self.right, self.among, self.valid, self.alive = list(zeros), list(zeros), list(zeros), list(zeros)

    def add(self, batch: Prefixes, hidden: Tensor, device: torch.device) -> None:
        logits = self.model(hidden.to(device), batch.tokens.to(device))
        alive = torch.ones(len(batch.tokens), dtype=torch.bool)
        self.prefixes += len(batch.tokens)
        for i, one in enumerate(logits):
            guesses = self.model.vocab[one.topk(min(_TOP, one.shape[-1])).indices].cpu()
            best, valid = batch.teacher_ids[:, i, :1], batch.valid[:, i]
            self.right[i] += float(((guesses[:, :1] == best)[:, 0] & valid).sum())
            self.among[i] += float(((guesses == best).any(-1) & valid).sum())
            self.valid[i] += float(valid.sum())
            alive &= (guesses[:, 0] == batch.targets[:, i]) & valid
            self.alive[i] += float(alive.sum())

    def shares(self) -> tuple[list[float], list[float], float]:
        steps = [a / max(b, 1.0) for a, b in zip(self.right, self.valid, strict=True)]
        top = [a / max(b, 1.0) for a, b in zip(self.among, self.valid, strict=True)]
        return steps, top, 1 + sum(self.alive) / max(self.prefixes, 1)

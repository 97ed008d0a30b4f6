"""Drafting with the attention baseline: a tree drafted from the KV cache of the whole context.

Source: EAGLE-2, arXiv:2406.16858 (trees by probability).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from justright.speculative.attention_network import AttentionModel
from justright.speculative.base import EMPTY_DRAFT, Draft
from justright.speculative.store import verifier_matrices
from justright.speculative.trained import TrainedDrafter, TrainedOptions
from justright.speculative.tree import TreeShape, grow
from justright.speculative.tuning import TreeTable, best_shape, measure_drafting

_TUNED_AT = 2048
"""Context tokens at which drafting is timed; the engine compares it with a verification at the same length."""


class Context:
    """One request's tokens, the keys and values of their states, and the features of the last state.

    Args:
        token_ids: the tokens known so far.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.tokens = list(token_ids)
        self.length = 0
        """Rows of keys and values: the states read so far."""
        self.waiting: list[Tensor] = []
        """States that are known but not yet read, each ``[rows, size]``."""
        self.last: Tensor | None = None
        """Features after the last row, ``[1, size]``."""
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        """``[heads, length, head]``."""
        assert self._keys is not None, "read a state first"
        return self._keys[:, : self.length]

    @property
    def values(self) -> Tensor:
        """``[heads, length, head]``."""
        assert self._values is not None, "read a state first"
        return self._values[:, : self.length]

    def catch_up(self, model: AttentionModel) -> bool:
        """Read the pending states; each needs the token after it. False if there is nothing to draft from."""
        if not self.waiting:
            return self.last is not None
        hidden = torch.cat(self.waiting)
        self.waiting = []
        following = self.tokens[self.length + 1 : self.length + 1 + len(hidden)]
        if len(following) < len(hidden):
            raise AssertionError("every state has a token after it")
        x = model.enter(hidden, torch.tensor(following, device=hidden.device))
        positions = torch.arange(self.length, self.length + len(hidden), device=hidden.device)
        q, k, v = model.project(x, positions)
        self._append(k, v)
        attended = F.scaled_dot_product_attention(q[:, -1:], self.keys, self.values)
        self.last = model.leave(x[-1:], attended)
        return True

    def _append(self, k: Tensor, v: Tensor) -> None:
        """Append keys and values ``[heads, rows, head]``; the buffers double, so a step copies only the new part."""
        end = self.length + k.shape[1]
        if self._keys is None or self._values is None or end > self._keys.shape[1]:
            shape = (k.shape[0], max(2 * end, 256), k.shape[2])
            keys, values = k.new_empty(shape), v.new_empty(shape)
            if self._keys is not None and self._values is not None:
                keys[:, : self.length], values[:, : self.length] = self.keys, self.values
            self._keys, self._values = keys, values
        self._keys[:, self.length : end], self._values[:, self.length : end] = k, v
        self.length = end


class AttentionDrafter(TrainedDrafter):
    """Drafts from the states of all tokens of the context.

    Args:
        options: see `TrainedOptions`.
    """

    name = "attention"
    kind = "attention"
    options_type = TrainedOptions
    untuned = TreeShape(30, 6, 4)  # EAGLE-2's order of magnitude
    needs_states = True

    def __init__(self, options: TrainedOptions | None = None) -> None:
        super().__init__(options)
        self._model: AttentionModel | None = None
        self._trees: TreeTable | None = None
        self._contexts: dict[Hashable, Context] = {}

    def bind(self, model: PreTrainedModel, path: Path | None) -> None:
        """As `justright.speculative.lstm_drafter.LstmDrafter.bind`."""
        folder, about = self.find(path)
        self._trees = TreeTable.from_dict((about.get("trees") or {}).get("plain"))
        self._model = AttentionModel.load(folder, *verifier_matrices(model, path)).to(model.device)
        self._model.pack()

    def tune(self, verify_s: Callable[[int], float], max_nodes: int) -> None:
        """As `justright.speculative.lstm_drafter.LstmDrafter.tune`; drafting is timed at 2,048 tokens of context."""
        if self._trees is None or self._model is None:
            return
        table = self._trees.among(max_nodes=max_nodes, **self.options.shape)
        draft_s = draft_seconds(self._model)
        self.shape = self._settled(
            best_shape(table, verify_s, draft_s, spec=False, min_prob=self.options.min_prob)[0]
        )

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        """Begin a request whose prompt is ``prompt_ids``."""
        self._contexts[request_id] = Context(prompt_ids)

    def read(self, request_id: Hashable, hidden: Tensor) -> None:
        """Receive the states of the sequence's next tokens, ``[tokens, hidden_size]``, as the verifier kept them."""
        self._contexts[request_id].waiting.append(hidden)

    @torch.inference_mode()
    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        """Record verified tokens; with the first of them it reads the prompt, as part of the prefill."""
        context = self._contexts[request_id]
        context.tokens += token_ids
        if not context.length and self._model is not None:
            context.catch_up(self._model)

    @torch.inference_mode()
    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        """Read the new part of the context, then grow a tree from its end."""
        context, model = self._contexts[request_id], self._model
        assert model is not None, "bind the drafter before use"
        shape = replace(self.shape, nodes=min(self.shape.nodes, max_nodes))
        if shape.nodes < 1 or not context.catch_up(model):
            return EMPTY_DRAFT
        return replace(grow_tree(model, context, shape), source=self.name)

    def stop(self, request_id: Hashable) -> None:
        """Forget the request."""
        del self._contexts[request_id]


def grow_tree(model: AttentionModel, context: Context, shape: TreeShape) -> Draft:
    """The most probable tree after the end of ``context``, whose states must all be read."""
    return grow(_Grower(model, context, shape.top_k).expand, shape)


@torch.inference_mode()
def draft_seconds(model: AttentionModel) -> Callable[[int, int], float]:
    """Drafting seconds after 2,048 tokens, by ``(width, depth)``; measured at the narrowest and the widest."""
    size = model.config.hidden_size
    context = Context([0] * (_TUNED_AT + 1))
    context.waiting.append(torch.ones(_TUNED_AT, size, device=model.head_rows.device))
    context.catch_up(model)
    return measure_drafting(lambda shape: grow_tree(model, context, shape))


class _Grower:
    """Expands a tree: each level's nodes attend to the context and to their own paths."""

    def __init__(self, model: AttentionModel, context: Context, top_k: int) -> None:
        assert context.last is not None
        self.model, self.context, self.top_k = model, context, top_k
        self.states = context.last
        self.keys: list[list[Tensor]] = [[]]
        self.values: list[list[Tensor]] = [[]]
        self.depth = 0

    def expand(self, rows: Tensor | None, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `justright.speculative.tree.Expand`."""
        if rows is not None and tokens is not None:
            self._step(rows, tokens)
        logs = torch.log_softmax(self.model.logits(self.states).float(), dim=-1)
        best = logs.topk(min(self.top_k, logs.shape[-1]), dim=-1)
        return best.values.cpu(), self.model.vocab[best.indices].cpu()

    def _step(self, rows: Tensor, tokens: Tensor) -> None:
        context, model = self.context, self.model
        device = self.states.device
        x = model.enter(self.states[rows.to(device)], tokens.to(device))
        position = torch.full((len(rows),), context.length + self.depth, device=device)
        q, k, v = model.project(x, position)
        self.keys = [[*self.keys[row], k[:, i : i + 1]] for i, row in enumerate(rows.tolist())]
        self.values = [[*self.values[row], v[:, i : i + 1]] for i, row in enumerate(rows.tolist())]
        # The context once for all nodes, plus each node's own path.
        scale = q.shape[-1] ** -0.5
        shared = q @ context.keys.transpose(1, 2) * scale
        own_k = torch.stack([torch.cat(path, dim=1) for path in self.keys], dim=1)
        own_v = torch.stack([torch.cat(path, dim=1) for path in self.values], dim=1)
        own = (q[:, :, None] @ own_k.transpose(2, 3))[:, :, 0] * scale
        weights = torch.softmax(torch.cat([shared, own], dim=-1), dim=-1)
        length = context.keys.shape[1]
        attended = weights[..., :length] @ context.values + (weights[..., None, length:] @ own_v)[:, :, 0]
        self.states = model.leave(x, attended)
        self.depth += 1

"""Observe the inputs and outputs of a layer's matrices while transformers' own code runs it.

A torch dispatch mode intercepts every product with a watched weight, so no family's forward is reimplemented here.
This covers plain linear layers, experts in a loop (each a view of the stacked tensor), and batched experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PRODUCTS = (
    F.linear,
    torch.matmul,
    torch.bmm,
    torch.mm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.mm,
)

Seen = Callable[[str, int | None, Tensor, Tensor], None]
"""``(name, expert, inputs [tokens, in], outputs [tokens, out])``; expert is None for a plain matrix."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A weight to watch: its ``name``, the ``tensor``, and whether axis 0 indexes experts."""

    name: str
    tensor: Tensor
    stacked: bool


class Watch(TorchFunctionMode):
    """Context manager that calls ``seen`` for every product with one of the weights.

    Args:
        weights: Weights to watch.
        seen: Callback for every product.
    """

    def __init__(self, weights: Sequence[Watched], seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        # Keyed by address: references to the tensors would keep them in memory.
        self._whole = {w.tensor.data_ptr(): (w.name, w.stacked, w.tensor.ndim) for w in weights}
        self._experts = {
            w.tensor[e].data_ptr(): (w.name, e) for w in weights if w.stacked for e in range(len(w.tensor))
        }

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in _PRODUCTS:
            weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
            if isinstance(weight, Tensor):
                self._look(args[0], weight, out)
        return out

    def _look(self, inputs: Tensor, weight: Tensor, outputs: Tensor) -> None:
        at = weight.data_ptr()
        name, stacked, ndim = self._whole.get(at, ("", False, -1))
        if weight.ndim == ndim:
            if stacked:
                for expert in range(len(weight)):
                    self._seen(name, expert, inputs[expert], outputs[expert])
            else:
                self._seen(name, None, inputs.flatten(0, -2), outputs.flatten(0, -2))
        elif at in self._experts:
            name, expert = self._experts[at]
            self._seen(name, expert, inputs, outputs)


class Routing:
    """Observes the routing of a layer's tokens to experts; use it in a ``with`` block.

    Args:
        layer: The decoder layer.
        experts: Module path of its experts.
        router: Module path of its router, for expert modules that do not receive the routing as an argument.
        top_k: Experts per token.
        seen: Callback before the experts run: ``(chosen [tokens, top_k] int64, weights [tokens, top_k])``.
    """

    def __init__(
        self,
        layer: nn.Module,
        experts: str,
        router: str,
        top_k: int,
        seen: Callable[[Tensor, Tensor], None],
    ) -> None:
        self._experts = layer.get_submodule(experts)
        self._router = layer.get_submodule(router)
        self._top_k = top_k
        self._seen = seen
        self._handles: list[Any] = []

    def __enter__(self) -> Routing:
        self._handles = [
            self._router.register_forward_hook(self._after_router),
            self._experts.register_forward_pre_hook(self._before_experts, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before_experts(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        given = [*args[1:], *kwargs.values()]
        if len(given) == 2:
            self._seen(given[0].long(), given[1])

    def _after_router(self, _: nn.Module, __: Any, output: Any) -> None:
        # Llama 4 returns (scores of all experts, logits); its experts receive tokens multiplied by their scores.
        if len(output) == 2:
            scores = output[0].flatten(0, -2)
            weights, chosen = scores.topk(self._top_k, dim=-1)
            self._seen(chosen, weights)

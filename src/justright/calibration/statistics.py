"""Statistics of a running layer: inputs of every matrix, routing, and expert outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from justright.architectures.schema import Moe
from justright.calibration.stream import LayerStream
from justright.calibration.watch import Routing, Watch, Watched
from justright.errors import ResourceError

ALL = frozenset({"squares", "counts", "coactivation", "output_norms", "gated_norms"})
"""The fields of `LayerStatistics` that a `Collector` can collect."""


@dataclass(slots=True)
class LayerStatistics:
    """Sums over all calibration tokens of one layer, on the CPU.

    Attributes:
        tokens: Number of tokens that the layer received.
        squares: Matrix -> sum of squares of each input, ``[in]``, for experts ``[num_experts, in]``, float64.
        counts: Tokens sent to each expert, ``[num_experts]`` int64; None for a layer without experts.
        coactivation: Tokens sent to both of two experts, ``[num_experts, num_experts]`` int64, zero diagonal.
        output_norms: Sum over an expert's tokens of its output norm, ``[num_experts]`` float64.
        gated_norms: The same, with each norm multiplied by the token's gate weight.
    """

    tokens: int = 0
    squares: dict[str, Tensor] = field(default_factory=dict)
    counts: Tensor | None = None
    coactivation: Tensor | None = None
    output_norms: Tensor | None = None
    gated_norms: Tensor | None = None

    def check(self, layer: int) -> LayerStatistics:
        """Validate that all sums are finite, and return the statistics.

        Args:
            layer: Index of the layer, for the message.

        Raises:
            ResourceError: A sum is NaN or infinite: the layer's values overflow the dtype it ran in.
        """
        for name, tensor in self.to_tensors().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ResourceError(
                    f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values of the calibration statistic "
                    f"{name} of layer {layer} are NaN or infinite, because the layer overflows its dtype. Use --dtype "
                    "float32 or bfloat16"
                )
        return self

    def to_tensors(self) -> dict[str, Tensor]:
        """Convert to tensors for a safetensors file."""
        out = {"tokens": torch.tensor(self.tokens)}
        out |= {f"squares/{name}": tensor for name, tensor in self.squares.items()}
        for name in ("counts", "coactivation", "output_norms", "gated_norms"):
            if (tensor := getattr(self, name)) is not None:
                out[name] = tensor
        return out

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LayerStatistics:
        """The inverse of `to_tensors`."""
        return cls(
            int(tensors["tokens"]),
            {k.removeprefix("squares/"): v for k, v in tensors.items() if k.startswith("squares/")},
            *(tensors.get(name) for name in ("counts", "coactivation", "output_norms", "gated_norms")),
        )


class Collector:
    """Collects statistics of a running layer; use it in a ``with`` block around `LayerStream.measure` or `advance`.

    Args:
        stream: The stream that runs the layer.
        index: Index of the layer.
        layer: The result of `LayerStream.materialise`.
        needs: Statistics to collect, from `ALL`; the others stay empty.
    """

    def __init__(
        self, stream: LayerStream, index: int, layer: nn.Module, needs: Collection[str] = ALL
    ) -> None:
        spec = stream.spec
        self.statistics = LayerStatistics(tokens=stream.ids.numel())
        self._layer, self._needs = layer, needs
        self._norms = "output_norms" in needs or "gated_norms" in needs
        self._moe: Moe | None = spec.architecture.moe if spec.experts[index] else None
        prefix = spec.architecture.memory.layer(index) + "."
        parameters = dict(layer.named_parameters())
        weights: list[Watched] = []
        if "squares" in needs:
            names = [m.name.removeprefix(prefix) + ".weight" for m in spec.linears if m.layer == index]
            weights = [Watched(name, parameters[name], stacked=False) for name in names]
        self._routing: Routing | None = None
        if self._moe is not None:
            memory = self._moe.memory
            stacks = memory.matrices if "squares" in needs else (memory.down,) if self._norms else ()
            weights += [Watched(name, parameters[name], stacked=True) for name in stacks]
            count = len(parameters[memory.down])
            self._zero(count)
            self._routing = Routing(
                layer, memory.module, self._moe.router.module, spec.experts_per_token, self._routed
            )
        self._watch = Watch(weights, self._seen)

    def __enter__(self) -> LayerStatistics:
        with contextlib.ExitStack() as stack:
            if self._routing is not None:
                stack.enter_context(self._routing)
            stack.enter_context(self._watch)
            self._entered = stack.pop_all()
        return self.statistics

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def _zero(self, count: int) -> None:
        found = self.statistics
        found.counts = torch.zeros(count, dtype=torch.int64)
        if "coactivation" in self._needs:
            found.coactivation = torch.zeros(count, count, dtype=torch.int64)
        if self._norms:
            found.output_norms = torch.zeros(count, dtype=torch.float64)
            found.gated_norms = torch.zeros(count, dtype=torch.float64)

    def _routed(self, chosen: Tensor, weights: Tensor) -> None:
        found = self.statistics
        assert found.counts is not None
        self._chosen, self._gates = chosen, weights
        hot = torch.zeros(len(chosen), len(found.counts), device=chosen.device).scatter_(1, chosen, 1.0)
        together = (hot.T @ hot).long().cpu()
        found.counts += together.diagonal()
        if found.coactivation is not None:
            found.coactivation += together.fill_diagonal_(0)

    def _seen(self, name: str, expert: int | None, inputs: Tensor, outputs: Tensor) -> None:
        if "squares" in self._needs:
            self._add_squares(name, expert, inputs)
        if expert is not None and self._norms and self._moe is not None and name == self._moe.memory.down:
            self._put_out(expert, outputs)

    def _add_squares(self, name: str, expert: int | None, inputs: Tensor) -> None:
        squares = inputs.float().square().sum(0).double().cpu()
        sums = self.statistics.squares
        if expert is None:
            sums[name] = sums.get(name, 0) + squares
            return
        if name not in sums:
            assert self.statistics.counts is not None
            sums[name] = torch.zeros(len(self.statistics.counts), len(squares), dtype=torch.float64)
        sums[name][expert] += squares

    def _put_out(self, expert: int, outputs: Tensor) -> None:
        """Add the norms of an expert's outputs, bias included, plain and multiplied by the gate."""
        assert self._moe is not None
        found = self.statistics
        assert found.output_norms is not None
        assert found.gated_norms is not None
        if (bias := self._moe.memory.down_bias) is not None:
            outputs = outputs + self._layer.get_parameter(bias)[expert]
        mine = self._chosen == expert
        gates = self._gates.T[mine.T]  # by place, then token: the order in which transformers gathers them
        if len(outputs) != len(gates):
            # Llama 4 multiplies all tokens by their gates first, so the output includes the gate.
            outputs, gates = outputs[mine.any(1)], torch.ones_like(gates)
        norms = outputs.double().norm(dim=1)
        found.output_norms[expert] += norms.sum().cpu()
        found.gated_norms[expert] += (norms * gates.double()).sum().cpu()

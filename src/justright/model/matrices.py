"""The prunable or switchable matrices of a decoder layer, by part, each viewed as ``[..., out, in]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from justright.architectures.schema import Part
from justright.architectures.spec import ModelSpec
from justright.errors import UsageError
from justright.model.decoder_layer import State

PARTS: tuple[Part, ...] = ("experts", "shared_experts", "attention", "mlp")
"""Parts whose matrices may change. Router, embeddings, head and norms never do (arXiv:2409.06211's authors prune the
router too)."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of a layer, or a stack of them.

    Attributes:
        name: Name in memory, relative to the layer.
        part: Its part of the model.
        stacked: Whether axis 0 is the expert.
        transposed: Whether it is stored as ``[..., in, out]``.
    """

    name: str
    part: Part
    stacked: bool = False
    transposed: bool = False

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a view ``[..., out, in]``; the operation is its own inverse."""
        return tensor.transpose(-1, -2) if self.transposed else tensor


def check_parts(parts: Sequence[str]) -> None:
    """Validate names of parts.

    Raises:
        UsageError: A part is unknown, or there are no parts.
    """
    wrong = [part for part in parts if part not in PARTS]
    if wrong or not parts:
        raise UsageError(f"parts {', '.join(wrong) or '(none)'}; allowed: one or more of {', '.join(PARTS)}")


def matrices(spec: ModelSpec, index: int, parts: Sequence[str] = PARTS) -> list[Matrix]:
    """The matrices of decoder layer ``index``; separately stored experts share one entry per tensor name."""
    prefix = spec.architecture.memory.layer(index) + "."
    found = [
        Matrix(m.name.removeprefix(prefix) + ".weight", m.part)
        for m in spec.linears
        if m.layer == index and m.part in parts
    ]
    moe = spec.architecture.moe
    if moe is not None and "experts" in parts and spec.experts[index]:
        layout = moe.memory
        found += [Matrix(n, "experts", layout.stacked, layout.transposed) for n in layout.matrices]
    return found


def expand(found: Sequence[Matrix], state: State) -> list[Matrix]:
    """Replace ``{e}`` in `matrices` by each expert of a state."""
    out = []
    for matrix in found:
        if "{e}" not in matrix.name:
            out.append(matrix)
            continue
        expert = 0
        while (name := matrix.name.format(e=expert)) in state:
            out.append(Matrix(name, matrix.part, transposed=matrix.transposed))
            expert += 1
    return out

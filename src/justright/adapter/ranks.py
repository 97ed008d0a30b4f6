"""Choose the number of singular directions that a switch keeps of each matrix, from the spectra alone.

Source: arXiv:2510.06750 (rank by cumulative energy).
Differs: the paper's exact power and threshold are not available; other rules are provided for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from justright.adapter.rank_rules.base import RULES
from justright.errors import UsageError

Scope = Literal["matrix", "layer", "global"]
SCOPES: tuple[Scope, ...] = ("matrix", "layer", "global")

SingularValues = Mapping[str, Tensor]
"""Matrix -> all singular values of its difference, descending, ``[min(out, in)]`` float32."""


@dataclass(frozen=True, slots=True)
class RankRule:
    """A rank rule with its parameters.

    Attributes:
        rule: A name in `justright.adapter.rank_rules.base.RULES`; the rule's file documents it.
        value: Parameter of the rule, such as a share or a rank; rules without it in `Rule.takes` ignore it.
        power: Power of the singular values in ``energy``, 1 or 2.
        scope: Whether the rule applies to each matrix, each layer, or the whole model.

    Raises:
        UsageError: A value is not allowed.
    """

    rule: str = "energy"
    value: float = 0.9
    power: int = 2
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        rule = RULES.get(self.rule)
        if self.scope not in SCOPES:
            raise UsageError(f"scope {self.scope!r}; allowed: {', '.join(SCOPES)}")
        if self.scope != "matrix" and "scope" not in rule.takes:
            raise UsageError(
                f"rule {self.rule} has no scope {self.scope}, as it treats each matrix alone: use scope {SCOPES[0]}"
            )
        if self.power not in (1, 2):
            raise UsageError(f"power {self.power}; allowed: 1 and 2")
        rule.check(self)


def choose_ranks(
    spectra: SingularValues, rule: RankRule, layer_of: Callable[[str], Any] = lambda _: 0
) -> dict[str, int]:
    """Choose the rank of every matrix; 0 if its difference is zero.

    Args:
        spectra: See `SingularValues`.
        rule: The rank rule.
        layer_of: Returns the layer of a matrix, for the scope ``layer``.
    """
    if rule.scope == "matrix":
        return {name: _rank(values, rule) for name, values in spectra.items()}
    groups: dict[Any, list[str]] = {}
    for name in spectra:
        group = layer_of(name) if rule.scope == "layer" else None
        groups.setdefault(group, []).append(name)
    ranks: dict[str, int] = {}
    for names in groups.values():
        ranks |= pooled_ranks({name: spectra[name] for name in names}, rule)
    return {name: ranks[name] for name in spectra}


def pooled_ranks(spectra: SingularValues, rule: RankRule) -> dict[str, int]:
    """Pool the singular values of all matrices, and keep the largest, as many as the rule selects."""
    names = list(spectra)
    values = torch.cat([spectra[name] for name in names])
    owner = torch.cat([torch.full((len(spectra[name]),), i) for i, name in enumerate(names)])
    order = values.argsort(descending=True, stable=True)
    count = _rank(values[order], rule)
    kept = torch.bincount(owner[order[:count]], minlength=len(names))
    return {name: int(kept[i]) for i, name in enumerate(names)}


def rule_for_budget(
    spectra: SingularValues, shapes: Mapping[str, Sequence[int]], budget: int, rule: RankRule, width: int,
    layer_of: Callable[[str], Any] = lambda _: 0,
) -> RankRule:  # fmt: skip
    """Find the energy rule with the largest share whose factors fit ``budget`` bytes.

    Args:
        spectra: See `SingularValues`.
        shapes: ``(out, in)`` of every matrix.
        budget: Size limit in bytes.
        rule: Source of power and scope.
        width: Bytes per element.
        layer_of: See `choose_ranks`.

    Raises:
        UsageError: Not even one direction fits, or the rule does not use energy.
    """
    if rule.rule != "energy":
        raise UsageError(
            f"a budget works with rule energy only, not with {rule.rule}: leave out the budget or the rule"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        ranks = choose_ranks(spectra, replace(rule, value=middle), layer_of)
        low, high = (middle, high) if factor_bytes(ranks, shapes, width) <= budget else (low, middle)
    for share in (high, low):
        if share > 0:
            found = replace(rule, value=share)
            if factor_bytes(choose_ranks(spectra, found, layer_of), shapes, width) <= budget:
                return found
    smallest = replace(rule, value=1e-12)
    least = factor_bytes(choose_ranks(spectra, smallest, layer_of), shapes, width)
    raise UsageError(
        f"a budget of {budget:,} bytes is too small: the smallest adapter of this pair needs {least:,}"
    )


def factor_bytes(ranks: Mapping[str, int], shapes: Mapping[str, Sequence[int]], width: int) -> int:
    """Bytes of both factors of all matrices, ``rank * (out + in)`` elements each.

    Experts of one stack (``NAME#0``, ``NAME#1``, ...) all use the largest of their ranks, as in an adapter file.
    """
    stacks: dict[str, int] = {}
    for name, rank in ranks.items():
        stack = name.partition("#")[0]
        stacks[stack] = max(stacks.get(stack, 0), rank)
    return sum(stacks[name.partition("#")[0]] * sum(shapes[name]) * width for name in ranks)


def _rank(values: Tensor, rule: RankRule) -> int:
    """Number of descending singular values that the rule keeps; zeros never count."""
    return min(RULES.get(rule.rule).rank(values, rule), int((values > 0).sum()))

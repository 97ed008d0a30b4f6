"""How many singular directions of each matrix a switch keeps, from the spectra alone.

Source: arXiv:2510.06750 (rank by cumulative energy).
Differs: the paper's exact power and threshold could not be had; other rules are here to be compared with.
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

Spectra = Mapping[str, Tensor]
"""Matrix -> all singular values of its difference, descending, ``[min(out, in)]`` float32."""


@dataclass(frozen=True, slots=True)
class RankRule:
    """How ranks are chosen.

    Attributes:
        rule: a name in `justright.adapter.rank_rules.base.RULES`; its file says what the rule keeps.
        value: the rule's number: a share, a rank; rules whose `Rule.takes` lacks it ignore it.
        power: of the singular values in ``energy``, 1 or 2.
        scope: the rule is applied to every matrix, to every layer, or to the whole model.

    Raises:
        UsageError: a value that is not allowed.
    """

    rule: str = "energy"
    value: float = 0.9
    power: int = 2
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        rule = RULES.get(self.rule)
        if self.scope not in SCOPES:
            raise UsageError(f"scope {self.scope!r}: there are {', '.join(SCOPES)}")
        if self.scope != "matrix" and "scope" not in rule.takes:
            raise UsageError(
                f"scope {self.scope} has no meaning here: {self.rule} looks at one matrix at a time"
            )
        if self.power not in (1, 2):
            raise UsageError(f"power {self.power}: allowed are 1 and 2")
        rule.check(self)


def choose_ranks(
    spectra: Spectra, rule: RankRule, layer_of: Callable[[str], Any] = lambda _: 0
) -> dict[str, int]:
    """The rank of every matrix; 0 where its difference is zero.

    Args:
        spectra: see `Spectra`.
        rule: how.
        layer_of: a matrix' layer, for the scope ``layer``.
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


def pooled_ranks(spectra: Spectra, rule: RankRule) -> dict[str, int]:
    """The largest singular values of all matrices together, as many as the rule keeps of them."""
    names = list(spectra)
    values = torch.cat([spectra[name] for name in names])
    owner = torch.cat([torch.full((len(spectra[name]),), i) for i, name in enumerate(names)])
    order = values.argsort(descending=True, stable=True)
    count = _rank(values[order], rule)
    kept = torch.bincount(owner[order[:count]], minlength=len(names))
    return {name: int(kept[i]) for i, name in enumerate(names)}


def rule_for_budget(
    spectra: Spectra, shapes: Mapping[str, Sequence[int]], budget: int, rule: RankRule, width: int,
    layer_of: Callable[[str], Any] = lambda _: 0,
) -> RankRule:  # fmt: skip
    """The energy rule of the largest share whose factors fit ``budget`` bytes.

    Args:
        spectra: see `Spectra`.
        shapes: ``(out, in)`` of every matrix.
        budget: bytes.
        rule: of which power and scope are taken.
        width: bytes a number.
        layer_of: see `choose_ranks`.

    Raises:
        UsageError: not even one direction fits, or a rule that looks at no energy.
    """
    if rule.rule != "energy":
        raise UsageError(
            f"a budget takes the most energy that fits, and {rule.rule} looks at no energy: leave one out"
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
        f"a budget of {budget:,} bytes is too small: the least that switches anything has {least:,}"
    )


def factor_bytes(ranks: Mapping[str, int], shapes: Mapping[str, Sequence[int]], width: int) -> int:
    """Bytes of both factors of all matrices, ``rank * (out + in)`` numbers each.

    Experts of one stack (``NAME#0``, ``NAME#1``, ...) all have the largest of their ranks, as in an adapter's file.
    """
    stacks: dict[str, int] = {}
    for name, rank in ranks.items():
        stack = name.partition("#")[0]
        stacks[stack] = max(stacks.get(stack, 0), rank)
    return sum(stacks[name.partition("#")[0]] * sum(shapes[name]) * width for name in ranks)


def _rank(values: Tensor, rule: RankRule) -> int:
    """What the rule keeps of some singular values, descending; zeros never."""
    return min(RULES.get(rule.rule).rank(values, rule), int((values > 0).sum()))

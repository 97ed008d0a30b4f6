"""How many singular directions of each matrix a switch keeps, from the spectra alone.

Source: arXiv:2510.06750 (rank by cumulative energy).
Differs: the paper's exact power and threshold could not be had; other rules are here to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from justright.errors import UsageError

Rule = Literal["energy", "entropy", "fixed", "ratio"]
RULES: tuple[Rule, ...] = ("energy", "entropy", "fixed", "ratio")
Scope = Literal["matrix", "layer", "global"]
SCOPES: tuple[Scope, ...] = ("matrix", "layer", "global")

Spectra = Mapping[str, Tensor]
"""Matrix -> all singular values of its difference, descending, ``[min(out, in)]`` float32."""


@dataclass(frozen=True, slots=True)
class RankRule:
    """How ranks are chosen.

    Attributes:
        rule: ``energy`` keeps the least rank with the share ``value`` of ``sum s^power``; ``entropy`` the effective
            rank ``ceil(exp(-sum q ln q))``, ``q = s / sum s``; ``fixed`` the rank ``value``; ``ratio`` the share
            ``value`` of the full rank, rounded up.
        value: see rule; of no account for ``entropy``.
        power: of the singular values in ``energy``, 1 or 2.
        scope: of ``energy``: the share is kept of every matrix, of every layer, or of the whole model.

    Raises:
        UsageError: a value that is not allowed.
    """

    rule: Rule = "energy"
    value: float = 0.9
    power: int = 2
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"rank rule {self.rule!r}: there are {', '.join(RULES)}")
        if self.scope not in SCOPES:
            raise UsageError(f"scope {self.scope!r}: there are {', '.join(SCOPES)}")
        if self.scope != "matrix" and self.rule != "energy":
            raise UsageError(
                f"scope {self.scope} is for the rule energy: {self.rule} looks at one matrix at a time"
            )
        if self.power not in (1, 2):
            raise UsageError(f"power {self.power}: allowed are 1 and 2")
        if self.rule in ("energy", "ratio") and not 0 < self.value <= 1:
            raise UsageError(f"{self.rule} {self.value}: allowed is above 0 to 1, the share that is kept")
        if self.rule == "fixed" and (self.value < 1 or self.value != int(self.value)):
            raise UsageError(f"rank {self.value}: allowed are whole numbers from 1")


def choose_ranks(
    spectra: Spectra, rule: RankRule, layer_of: Callable[[str], Any] = lambda _: 0
) -> dict[str, int]:
    """The rank of every matrix; 0 where its difference is zero.

    Args:
        spectra: see `Spectra`.
        rule: how.
        layer_of: a matrix' layer, for the scope ``layer``.
    """
    if rule.rule == "energy" and rule.scope != "matrix":
        groups: dict[Any, list[str]] = {}
        for name in spectra:
            groups.setdefault(layer_of(name) if rule.scope == "layer" else None, []).append(name)
        ranks: dict[str, int] = {}
        for names in groups.values():
            ranks |= pooled_ranks({name: spectra[name] for name in names}, rule.value, rule.power)
        return {name: ranks[name] for name in spectra}
    return {name: _one(values, rule) for name, values in spectra.items()}


def energy_rank(values: Tensor, share: float, power: int = 2) -> int:
    """``min{k : sum_{i<=k} s_i^p >= share * sum s_i^p}``; 0 for a zero matrix.

    Args:
        values: singular values, descending.
        share: tau, in (0, 1].
        power: p.
    """
    energy = values.double() ** power
    total = energy.cumsum(0)
    if len(values) == 0 or float(total[-1]) == 0:
        return 0
    if share == 1:  # sums of tiny values would be lost in rounding
        return int((values > 0).sum())
    return min(len(values), int((total < share * total[-1]).sum()) + 1)


def entropy_rank(values: Tensor) -> int:
    """``ceil(exp(-sum q_i ln q_i))``, ``q_i = s_i / sum s``: the effective rank; 0 for a zero matrix."""
    positive = values.double()[values > 0]
    if len(positive) == 0:
        return 0
    q = positive / positive.sum()
    return min(len(positive), math.ceil(float((-(q * q.log()).sum()).exp()) - 1e-9))


def pooled_ranks(spectra: Spectra, share: float, power: int = 2) -> dict[str, int]:
    """The largest singular values of all matrices together, until their energy is the share of the sum."""
    names = list(spectra)
    values = torch.cat([spectra[name].double() for name in names])
    owner = torch.cat([torch.full((len(spectra[name]),), i) for i, name in enumerate(names)])
    order = values.argsort(descending=True, stable=True)
    count = energy_rank(values[order], share, power)
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
        UsageError: not even one direction fits.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        ranks = choose_ranks(spectra, RankRule("energy", middle, rule.power, rule.scope), layer_of)
        low, high = (middle, high) if factor_bytes(ranks, shapes, width) <= budget else (low, middle)
    for share in (high, low):
        if share > 0:
            found = RankRule("energy", share, rule.power, rule.scope)
            if factor_bytes(choose_ranks(spectra, found, layer_of), shapes, width) <= budget:
                return found
    smallest = RankRule("energy", 1e-12, rule.power, rule.scope)
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


def _one(values: Tensor, rule: RankRule) -> int:
    positive = int((values > 0).sum())
    if rule.rule == "energy":
        return energy_rank(values, rule.value, rule.power)
    if rule.rule == "entropy":
        return entropy_rank(values)
    wanted = int(rule.value) if rule.rule == "fixed" else math.ceil(rule.value * len(values))
    return min(wanted, positive)

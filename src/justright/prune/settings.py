"""What a user asks for, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from justright.errors import UsageError
from justright.model.matrices import check_parts
from justright.prune.criteria.base import (
    EXPERTS,
    NO_WEIGHTS,
    WEIGHTS,
    Clustering,
    ExpertCriterion,
    WeightCriterion,
)

Ratios = Literal["uniform", "outlier_weighed"]
RATIOS: tuple[Ratios, ...] = ("uniform", "outlier_weighed")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to prune.

    Attributes:
        sparsity: the fraction of the prunable parameters that goes in all, in [0, 1).
        expert_sparsity: the fraction of each layer's experts that goes in stage 1; None takes half of ``sparsity``,
            as far as routing allows, and with ``weights`` none as many as come nearest to all of it.
        criterion: which experts go: a name in `justright.prune.criteria.base.EXPERTS`.
        uneven: layers keep different numbers of experts, by one threshold for all; only this package loads the result.
        router_weight: lambda 1 of ``stun``.
        coactivation_weight: lambda 2 of ``stun``.
        weights: which single weights go: a name in `justright.prune.criteria.base.WEIGHTS`, or ``none`` of them.
        ratios: ``uniform``, or ``outlier_weighed`` by layer.
        pattern: ``n:m`` instead of a free choice in each row; its sparsity is then ``1 - n / m``.
        parts: of `justright.model.matrices.PARTS`.
        calibration: sources, see `justright.calibration.texts`.
        sequences: calibration sequences in all.
        length: tokens of each.
        min_tokens: an expert that saw fewer is pruned by magnitude.
        seed: of the calibration windows and of the ``random`` criterion.

    Raises:
        UsageError: a value that is not allowed.
    """

    sparsity: float = 0.4
    expert_sparsity: float | None = None
    criterion: str = "stun"
    uneven: bool = False
    router_weight: float = 1.0
    coactivation_weight: float = 1.0
    weights: str = "wanda"
    ratios: Ratios = "uniform"
    pattern: str | None = None
    parts: tuple[str, ...] = ("experts", "shared_experts", "attention", "mlp")
    calibration: tuple[str, ...] = ()
    sequences: int = 128
    length: int = 1024
    min_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sparsity", "expert_sparsity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{name} {value}: allowed is 0 to below 1, the fraction that goes")
        mix = (self.router_weight, self.coactivation_weight)
        if not all(0 <= value < float("inf") for value in mix) or not any(mix):
            raise UsageError(f"weights {mix} of stun's two terms: allowed are numbers from 0, not both 0")
        criterion, _ = self.expert_criterion, self.weight_criterion  # both checked
        check_parts(self.parts)
        clusters = [name for name, one in EXPERTS.known().items() if isinstance(one, Clustering)]
        if self.uneven and not isinstance(criterion, Clustering):
            raise UsageError(
                f"uneven cuts all layers' clusters at one height, and {self.criterion} makes no clusters: choose "
                f"{' or '.join(clusters)}"
            )
        if self.ratios not in RATIOS:
            raise UsageError(f"ratios {self.ratios!r}: there are {', '.join(RATIOS)}")
        if self.weight_criterion is None and (self.pattern is not None or self.ratios != "uniform"):
            raise UsageError("with weights none no single weight goes: leave out pattern and ratios")
        if self.pattern is not None:
            self.n_of_m()
            if self.ratios != "uniform":
                raise UsageError("a pattern has the same sparsity in every layer: leave the ratios uniform")

    @property
    def expert_criterion(self) -> ExpertCriterion:
        """What ``criterion`` names.

        Raises:
            UsageError: there is none of this name.
        """
        return EXPERTS.get(self.criterion)

    @property
    def weight_criterion(self) -> WeightCriterion | None:
        """What ``weights`` names; None for ``none``.

        Raises:
            UsageError: there is none of this name.
        """
        if self.weights == NO_WEIGHTS:
            return None
        if self.weights not in WEIGHTS.names():
            raise UsageError(
                f"weights {self.weights!r}: there are {', '.join([*WEIGHTS.names(), NO_WEIGHTS])}"
            )
        return WEIGHTS.get(self.weights)

    @property
    def needs_inputs(self) -> bool:
        """Whether single weights are scored by the inputs of their matrix, which takes calibration."""
        return self.weight_criterion is not None and self.weight_criterion.needs_inputs

    def n_of_m(self) -> tuple[int, int]:
        """The pattern's numbers.

        Raises:
            UsageError: it is none.
        """
        n, colon, m = (self.pattern or "").partition(":")
        if not colon or not n.isdigit() or not m.isdigit() or not 0 < int(n) < int(m):
            raise UsageError(f"pattern {self.pattern!r}: give N:M with 0 < N < M, as in 2:4")
        return int(n), int(m)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"parts": list(self.parts), "calibration": list(self.calibration)}

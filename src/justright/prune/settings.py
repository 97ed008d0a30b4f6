"""The pruning settings, validated on construction."""

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
        sparsity: Overall fraction of the prunable parameters to remove, in [0, 1).
        expert_sparsity: Fraction of each layer's experts that stage 1 removes. None: half of ``sparsity`` as far as
            routing allows; with ``weights`` "none", the number of experts that comes nearest to all of it.
        criterion: Expert criterion, a name in `justright.prune.criteria.base.EXPERTS`.
        uneven: Let layers keep different numbers of experts, by one global threshold; only justright loads the result.
        router_weight: Lambda 1 of ``stun``.
        coactivation_weight: Lambda 2 of ``stun``.
        weights: Weight criterion, a name in `justright.prune.criteria.base.WEIGHTS`, or ``none``.
        ratios: ``uniform``, or ``outlier_weighed`` per layer.
        pattern: Semi-structured pattern ``n:m``, with sparsity ``1 - n / m``; None selects freely within each row.
        parts: Parts to prune, from `justright.model.matrices.PARTS`.
        calibration: Text sources; see `justright.calibration.texts`.
        sequences: Number of calibration sequences.
        length: Tokens per sequence.
        min_tokens: The weights of an expert that received fewer tokens are pruned by magnitude.
        seed: Seed of the calibration windows and of the ``random`` criterion.

    Raises:
        UsageError: A value is not allowed.
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
                raise UsageError(f"{name} {value}; allowed: 0 to below 1, the fraction to remove")
        mix = (self.router_weight, self.coactivation_weight)
        if not all(0 <= value < float("inf") for value in mix) or not any(mix):
            raise UsageError(
                f"the weights of stun's two terms are {mix}; allowed: finite numbers from 0, not both 0"
            )
        criterion, _ = self.expert_criterion, self.weight_criterion  # both checked
        check_parts(self.parts)
        clusters = [name for name, one in EXPERTS.known().items() if isinstance(one, Clustering)]
        if self.uneven and not isinstance(criterion, Clustering):
            raise UsageError(
                f"uneven needs a criterion that clusters experts, and {self.criterion} does not: choose "
                f"{' or '.join(clusters)}"
            )
        if self.ratios not in RATIOS:
            raise UsageError(f"ratios {self.ratios!r}; allowed: {', '.join(RATIOS)}")
        if self.weight_criterion is None and (self.pattern is not None or self.ratios != "uniform"):
            raise UsageError("weights none removes no single weights: leave pattern and ratios out")
        if self.pattern is not None:
            self.n_of_m()
            if self.ratios != "uniform":
                raise UsageError("a pattern gives every layer the same sparsity: set ratios to uniform")

    @property
    def expert_criterion(self) -> ExpertCriterion:
        """The criterion named by ``criterion``.

        Raises:
            UsageError: No criterion has this name.
        """
        return EXPERTS.get(self.criterion)

    @property
    def weight_criterion(self) -> WeightCriterion | None:
        """The criterion named by ``weights``; None for ``none``.

        Raises:
            UsageError: No criterion has this name.
        """
        if self.weights == NO_WEIGHTS:
            return None
        if self.weights not in WEIGHTS.names():
            raise UsageError(
                f"weights {self.weights!r}; allowed: {', '.join([*WEIGHTS.names(), NO_WEIGHTS])}"
            )
        return WEIGHTS.get(self.weights)

    @property
    def needs_inputs(self) -> bool:
        """Whether the weight criterion uses the inputs of each matrix, which requires calibration."""
        return self.weight_criterion is not None and self.weight_criterion.needs_inputs

    def n_of_m(self) -> tuple[int, int]:
        """Parse the pattern into (n, m).

        Raises:
            UsageError: The pattern is not ``N:M`` with 0 < N < M.
        """
        n, colon, m = (self.pattern or "").partition(":")
        if not colon or not n.isdigit() or not m.isdigit() or not 0 < int(n) < int(m):
            raise UsageError(f"pattern {self.pattern!r}: give N:M with 0 < N < M, as in 2:4")
        return int(n), int(m)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that JSON can represent."""
        return asdict(self) | {"parts": list(self.parts), "calibration": list(self.calibration)}

"""Base classes of pruning criteria, and the registries that hold them.

An expert criterion ranks a layer's experts, or measures their similarity. A weight criterion scores single weights.
This module and the built-in criteria import no torch, so ``justright prune --help`` stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from justright.errors import UsageError
from justright.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from justright.calibration.statistics import LayerStatistics
    from justright.model.decoder_layer import LayerFormat
    from justright.prune.settings import Settings

STATISTICS = ("counts", "coactivation", "output_norms", "gated_norms")
"""Statistics that an expert criterion may need: `LayerStatistics` fields, summed over all calibration tokens."""


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The input of a criterion: one layer with experts.

    Attributes:
        layers: The checkpoint.
        index: Index of the layer.
        settings: The pruning settings.
        statistics: Statistics of the layer, with the fields that the criterion needs.
    """

    layers: LayerFormat
    index: int
    settings: Settings
    statistics: LayerStatistics

    @property
    def num_experts(self) -> int:
        """Routed experts of the layer."""
        return self.layers.spec.num_experts

    @property
    def router(self) -> Tensor:
        """The router's rows, ``[num_experts, hidden_size]``; read from the checkpoint."""
        return self.layers.router_weight(self.index)

    def sums(self, name: str) -> Tensor:
        """A statistic that the criterion needs: see `LayerStatistics` for shapes and dtypes."""
        found: Tensor | None = getattr(self.statistics, name)
        assert found is not None, f"{name} was not collected: declare it in `needs`"
        return found

    def mean(self, name: str) -> Tensor:
        """Mean of a statistic over each expert's tokens, ``[num_experts]`` float64; 0 for an expert without tokens."""
        return self.sums(name) / self.sums("counts").clamp(min=1)


class ExpertCriterion:
    """Base class that selects the experts to keep; derive from `Ranking` or `Clustering`.

    Attributes:
        name: Its registered name.
        help: What it scores by, for the command's help text.
        needs: Subset of `STATISTICS` to collect. If it is empty, stage 1 needs no calibration.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        if unknown := [name for name in self.needs if name not in STATISTICS]:
            raise UsageError(
                f"criterion {self.name} needs the unknown statistic {unknown[0]!r}; allowed: {', '.join(STATISTICS)}"
            )


class Ranking(ExpertCriterion):
    """Keeps the experts with the highest scores."""

    def scores(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts]``, finite; ties keep the lower index."""
        raise NotImplementedError


class Clustering(ExpertCriterion):
    """Clusters the most similar experts and keeps one per cluster."""

    def similarity(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts, num_experts]`` float64, finite; larger means more similar. The diagonal is ignored."""
        raise NotImplementedError


class WeightCriterion:
    """Scores single weights; the lowest scores of each row are removed.

    Attributes:
        name: Its registered name.
        help: What it scores by, for the command's help text.
        needs_inputs: Whether it uses the inputs of a matrix, which requires calibration. If inputs are unknown
            (too few tokens, a plan without texts), weights are scored by magnitude.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    needs_inputs: ClassVar[bool] = False

    def scores(self, weight: Tensor, input_norms: Tensor | None) -> Tensor:
        """Scores of some rows of a matrix; each row must not depend on the others.

        Args:
            weight: ``[rows, in]``.
            input_norms: ``[in]`` float32, the L2 norm of each input over all calibration tokens; None if
                `needs_inputs` is false.

        Returns:
            ``[rows, in]`` float32, finite.
        """
        raise NotImplementedError


EXPERTS: Registry[ExpertCriterion] = Registry(
    "criterion", "justright.prune.criteria", "justright.expert_criteria"
)
WEIGHTS: Registry[WeightCriterion] = Registry(
    "weight criterion", "justright.prune.criteria", "justright.weight_criteria"
)
NO_WEIGHTS = "none"
"""Replaces a weight criterion: no single weight is removed, so experts must meet the whole target."""


def without_calibration() -> str:
    """The criteria that need no calibration texts, for messages."""
    experts = [name for name, one in EXPERTS.known().items() if not one.needs]
    weights = [name for name, one in WEIGHTS.known().items() if not one.needs_inputs]
    return f"criterion {' or '.join(experts)}, weights {' or '.join(weights)}"

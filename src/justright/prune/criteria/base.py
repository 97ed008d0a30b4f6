"""Base classes of pruning criteria, and the registries that hold them.

An expert criterion ranks the experts of a layer, or says how alike they are. A weight criterion scores single weights.
This module and the built-in criteria import no torch, so that ``justright prune --help`` answers at once.
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
"""What an expert criterion may need: fields of `LayerStatistics`, sums over all calibration tokens."""


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """A layer with experts, as a criterion sees it.

    Attributes:
        layers: the checkpoint.
        index: of the layer.
        settings: how to prune.
        statistics: of the layer; it holds the fields that the criterion needs.
    """

    layers: LayerFormat
    index: int
    settings: Settings
    statistics: LayerStatistics

    @property
    def num_experts(self) -> int:
        """Routed experts of the layer."""
        from justright.architectures.spec import num_experts

        return num_experts(self.layers.config)

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
    """Which experts stay; derive from `Ranking` or `Clustering`.

    Attributes:
        name: under which it is registered.
        help: what it goes by, for the command's help text.
        needs: of `STATISTICS`; a run collects only these. Without any, stage 1 needs no calibration.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        if unknown := [name for name in self.needs if name not in STATISTICS]:
            raise UsageError(
                f"criterion {self.name} needs {unknown[0]!r}: allowed are {', '.join(STATISTICS)}"
            )


class Ranking(ExpertCriterion):
    """The experts of the highest scores stay."""

    def scores(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts]``, finite; of equal scores the lower index stays."""
        raise NotImplementedError


class Clustering(ExpertCriterion):
    """The experts that are most alike form clusters; one expert of each cluster stays."""

    def similarity(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts, num_experts]`` float64, finite, larger is more alike; the diagonal is ignored."""
        raise NotImplementedError


class WeightCriterion:
    """Which single weights go: the lowest scores of each row.

    Attributes:
        name: under which it is registered.
        help: what it goes by, for the command's help text.
        needs_inputs: whether it scores by the inputs of a matrix, which takes calibration. Where inputs are not known
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
"""In place of a weight criterion: no single weight goes, so the whole target is experts."""


def without_calibration() -> str:
    """The criteria that need no calibration texts, for messages."""
    experts = [name for name, one in EXPERTS.known().items() if not one.needs]
    weights = [name for name, one in WEIGHTS.known().items() if not one.needs_inputs]
    return f"criterion {' or '.join(experts)}, weights {' or '.join(weights)}"

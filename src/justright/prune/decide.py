"""From statistics to the plan: which experts stay in each layer, and how sparse each layer becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from justright.calibration.statistics import LayerStatistics
from justright.models.architectures import expert_groups
from justright.models.decoder_layers import LayerFormat
from justright.models.expert_views import expert_vectors
from justright.prune.allocation import outlier_share, outlier_weighed_sparsity
from justright.prune.clusters import cluster
from justright.prune.experts import RANKED, Choice, highest, random_scores, representatives
from justright.prune.passes import prune_experts
from justright.prune.preflight import Sizes
from justright.prune.settings import Settings
from justright.prune.similarity import behavioural_similarity
from justright.prune.targets import expand, matrices
from justright.prune.weights import magnitude_scores, wanda_scores


def choose_experts(
    layers: LayerFormat, index: int, kept: int, settings: Settings, statistics: LayerStatistics | None
) -> Choice:
    """What stays of layer ``index``'s experts.

    Args:
        layers: the checkpoint.
        index: a layer with experts.
        kept: how many stay.
        settings: criterion and its weights.
        statistics: of the layer; None for ``router`` only.
    """
    groups = expert_groups(layers.config)[0]
    if settings.criterion not in ("stun", "router"):
        assert statistics is not None
        if settings.criterion == "random":
            scores = random_scores(statistics, settings.seed, index)
        else:
            scores = RANKED[settings.criterion](statistics)
        return highest(scores, kept, groups)
    moe = layers.architecture.moe
    assert moe is not None
    state = layers.read(index)
    rows = state[moe.router.weight]
    if settings.criterion == "router" or statistics is None:
        similarity = behavioural_similarity(rows, None)
    else:
        assert statistics.coactivation is not None
        similarity = behavioural_similarity(
            rows, statistics.coactivation, settings.router_weight, settings.coactivation_weight
        )
    return representatives(cluster(similarity, kept, groups), expert_vectors(state, moe))


def layer_sparsity(
    layers: LayerFormat,
    choices: dict[int, Choice],
    sizes: Sizes,
    settings: Settings,
    statistics: Sequence[LayerStatistics] | None,
) -> dict[int, float]:
    """The sparsity of each layer in stage 2."""
    if settings.ratios == "uniform":
        return dict.fromkeys(range(layers.layers), sizes.second)
    shares = []
    for index in range(layers.layers):
        choice = choices.get(index)
        found = statistics[index] if statistics is not None else None
        if found is not None and choice is not None:
            found = _of_kept(found, choice)
        shares.append(outlier_share(_scores(layers, index, choice, settings, found)))
    return dict(enumerate(outlier_weighed_sparsity(shares, sizes.by_layer, sizes.second)))


def _scores(
    layers: LayerFormat,
    index: int,
    choice: Choice | None,
    settings: Settings,
    statistics: LayerStatistics | None,
) -> list[Tensor]:
    state = prune_experts(layers, index, choice)
    scores = []
    for matrix in expand(matrices(layers.config, index, settings.parts), state):
        weight = matrix.rows(state[matrix.name])
        if statistics is None or settings.weights == "magnitude":
            scores.append(magnitude_scores(weight))
        else:
            norms = statistics.squares[matrix.name].sqrt().float()
            scores.append(wanda_scores(weight, norms[:, None] if matrix.stacked else norms))
    return scores


def _of_kept(statistics: LayerStatistics, choice: Choice) -> LayerStatistics:
    """The statistics of the experts that stay, in their new order."""
    kept = list(choice.kept)
    squares = {
        name: tensor[kept] if tensor.ndim == 2 else tensor for name, tensor in statistics.squares.items()
    }
    return replace(statistics, squares=squares)

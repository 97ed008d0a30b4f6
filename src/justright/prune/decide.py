"""From statistics to the plan: which experts stay in each layer, and how sparse each layer becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from justright.architectures.spec import expert_groups, num_experts
from justright.calibration.statistics import LayerStatistics
from justright.heap import trim
from justright.model.decoder_layer import LayerFormat
from justright.model.experts import expert_vector
from justright.model.matrices import expand, matrices
from justright.prune.allocation import outlier_share, outlier_weighed_sparsity
from justright.prune.clusters import cluster, counts_at_one_threshold
from justright.prune.experts import CLUSTERED, RANKED, Choice, highest, random_scores, representatives
from justright.prune.passes import prune_experts
from justright.prune.plan import least_count
from justright.prune.preflight import Sizes
from justright.prune.settings import Settings
from justright.prune.similarity import behavioural_similarity
from justright.prune.weights import scores_by_rows


def choose(
    layers: LayerFormat,
    counts: Mapping[int, int],
    settings: Settings,
    statistics: Sequence[LayerStatistics] | None,
) -> dict[int, Choice]:
    """What stays of every layer's experts.

    Args:
        layers: the checkpoint.
        counts: layer -> how many stay; in uneven mode only their sum counts.
        settings: criterion and its weights.
        statistics: of all layers; None for criteria that need none.
    """
    none = LayerStatistics(counts=torch.zeros(num_experts(layers.config), dtype=torch.int64))
    found = {index: statistics[index] if statistics else none for index in sorted(counts)}
    if settings.uneven:
        similarity = {i: expert_similarity(layers, i, settings, one) for i, one in found.items()}
        least, groups = least_count(layers.config), expert_groups(layers.config)[0]
        counts = counts_at_one_threshold(similarity, sum(counts.values()), least, groups)
    choices = {}
    for index, one in found.items():
        choices[index] = choose_experts(layers, index, counts[index], settings, one)
        trim()
    return choices


def expert_similarity(
    layers: LayerFormat, index: int, settings: Settings, statistics: LayerStatistics
) -> Tensor:
    """How alike a layer's experts behave by the settings' weights; ``[num_experts, num_experts]`` float64."""
    rows = layers.router_weight(index)
    if settings.criterion == "router":
        return behavioural_similarity(rows, None)
    assert statistics.coactivation is not None
    weights = settings.router_weight, settings.coactivation_weight
    return behavioural_similarity(rows, statistics.coactivation, *weights)


def choose_experts(
    layers: LayerFormat, index: int, kept: int, settings: Settings, statistics: LayerStatistics
) -> Choice:
    """What stays of layer ``index``'s experts.

    Args:
        layers: the checkpoint.
        index: a layer with experts.
        kept: how many stay.
        settings: criterion and its weights.
        statistics: of the layer.
    """
    groups = expert_groups(layers.config)[0]
    if settings.criterion not in CLUSTERED:
        if settings.criterion == "random":
            scores = random_scores(statistics, settings.seed, index)
        else:
            scores = RANKED[settings.criterion](statistics)
        return highest(scores, kept, groups)
    moe = layers.architecture.moe
    assert moe is not None
    clusters = cluster(expert_similarity(layers, index, settings, statistics), kept, groups)
    state = layers.read(index)
    return representatives(clusters, lambda expert: expert_vector(state, moe, expert))


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
        shares.append(_outlier_share(layers, index, choice, settings, found))
        trim()
    return dict(enumerate(outlier_weighed_sparsity(shares, sizes.by_layer, sizes.second)))


def _outlier_share(
    layers: LayerFormat,
    index: int,
    choice: Choice | None,
    settings: Settings,
    statistics: LayerStatistics | None,
) -> float:
    """`outlier_share` of layer ``index`` with the experts of ``choice``, whose statistics are given."""
    state = prune_experts(layers, index, choice)
    found = expand(matrices(layers.config, index, settings.parts), state)

    def scores() -> Iterator[Tensor]:
        for matrix in found:
            weight = matrix.rows(state[matrix.name])
            norms = None
            if statistics is not None and settings.weights == "wanda":
                norms = statistics.squares[matrix.name].sqrt().float()
            if not matrix.stacked:
                weight, norms = weight[None], None if norms is None else norms[None]
            for expert, one in enumerate(weight):
                yield from scores_by_rows(one, None if norms is None else norms[expert])

    return outlier_share(scores)


def _of_kept(statistics: LayerStatistics, choice: Choice) -> LayerStatistics:
    """The statistics of the experts that stay, in their new order."""
    kept = list(choice.kept)
    squares = {
        name: tensor[kept] if tensor.ndim == 2 else tensor for name, tensor in statistics.squares.items()
    }
    return replace(statistics, squares=squares)

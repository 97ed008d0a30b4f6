"""Derive the plan from statistics: the experts that each layer keeps, and the sparsity of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from justright.calibration.statistics import LayerStatistics
from justright.errors import UsageError
from justright.heap import trim
from justright.model.decoder_layer import LayerFormat
from justright.model.experts import expert_vector
from justright.model.matrices import expand, matrices
from justright.prune.allocation import outlier_share, outlier_weighed_sparsity
from justright.prune.clusters import cluster, counts_at_one_threshold
from justright.prune.criteria.base import Clustering, ExpertLayer, Ranking
from justright.prune.experts import KeptExperts, highest, representatives
from justright.prune.passes import prune_experts
from justright.prune.plan import least_count
from justright.prune.preflight import Sizes
from justright.prune.settings import Settings
from justright.prune.weights import scores_by_rows


def choose(
    layers: LayerFormat,
    counts: Mapping[int, int],
    settings: Settings,
    statistics: Sequence[LayerStatistics] | None,
) -> dict[int, KeptExperts]:
    """Choose the experts to keep in every layer.

    Args:
        layers: The checkpoint.
        counts: Layer -> number of kept experts; in uneven mode only their sum counts.
        settings: Criterion and its weights.
        statistics: Statistics of all layers; None for criteria that need none.
    """
    found = {index: statistics[index] if statistics else LayerStatistics() for index in sorted(counts)}
    if settings.uneven:
        similarity = {i: expert_similarity(layers, i, settings, one) for i, one in found.items()}
        least, groups = least_count(layers.spec), layers.spec.expert_groups[0]
        counts = counts_at_one_threshold(similarity, sum(counts.values()), least, groups)
    choices = {}
    for index, one in found.items():
        choices[index] = choose_experts(layers, index, counts[index], settings, one)
        trim()
    return choices


def expert_similarity(
    layers: LayerFormat, index: int, settings: Settings, statistics: LayerStatistics
) -> Tensor:
    """Pairwise similarity of a layer's experts by a `Clustering` criterion, ``[num_experts, num_experts]``.

    Raises:
        UsageError: The criterion returns another shape, NaN or infinity.
    """
    criterion = settings.expert_criterion
    assert isinstance(criterion, Clustering)
    count = layers.spec.num_experts
    found = criterion.similarity(ExpertLayer(layers, index, settings, statistics))
    return _checked(found, (count, count), settings.criterion)


def choose_experts(
    layers: LayerFormat, index: int, kept: int, settings: Settings, statistics: LayerStatistics
) -> KeptExperts:
    """Choose the experts to keep in layer ``index``.

    Args:
        layers: The checkpoint.
        index: Index of a layer with experts.
        kept: Number of experts to keep.
        settings: Criterion and its weights.
        statistics: Statistics of the layer.
    """
    groups = layers.spec.expert_groups[0]
    criterion = settings.expert_criterion
    if isinstance(criterion, Ranking):
        scores = criterion.scores(ExpertLayer(layers, index, settings, statistics))
        return highest(_checked(scores, (layers.spec.num_experts,), settings.criterion), kept, groups)
    moe = layers.architecture.moe
    assert moe is not None
    clusters = cluster(expert_similarity(layers, index, settings, statistics), kept, groups)
    state = layers.read(index)
    return representatives(clusters, lambda expert: expert_vector(state, moe, expert))


def _checked(found: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Validate the shape and finiteness of a criterion's result."""
    if tuple(found.shape) != shape or not bool(torch.isfinite(found).all()):
        raise UsageError(
            f"criterion {name} returned shape {list(found.shape)} with {int((~torch.isfinite(found)).sum())} NaN or "
            f"infinite values; it must return finite values of shape {list(shape)}"
        )
    return found


def layer_sparsity(
    layers: LayerFormat,
    choices: dict[int, KeptExperts],
    sizes: Sizes,
    settings: Settings,
    statistics: Sequence[LayerStatistics] | None,
) -> dict[int, float]:
    """The sparsity of each layer in stage 2."""
    if settings.ratios == "uniform":
        return dict.fromkeys(range(layers.spec.num_layers), sizes.second)
    shares = []
    for index in range(layers.spec.num_layers):
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
    choice: KeptExperts | None,
    settings: Settings,
    statistics: LayerStatistics | None,
) -> float:
    """`outlier_share` of layer ``index`` with the experts of ``choice`` and their statistics."""
    criterion = settings.weight_criterion
    assert criterion is not None
    state = prune_experts(layers, index, choice)
    found = expand(matrices(layers.spec, index, settings.parts), state)

    def scores() -> Iterator[Tensor]:
        for matrix in found:
            weight = matrix.rows(state[matrix.name])
            norms = None
            if statistics is not None and criterion.needs_inputs:
                norms = statistics.squares[matrix.name].sqrt().float()
            if not matrix.stacked:
                weight, norms = weight[None], None if norms is None else norms[None]
            for expert, one in enumerate(weight):
                yield from scores_by_rows(one, None if norms is None else norms[expert], criterion)

    return outlier_share(scores)


def _of_kept(statistics: LayerStatistics, choice: KeptExperts) -> LayerStatistics:
    """Select the statistics of the kept experts, in their new order."""
    kept = list(choice.kept)
    squares = {
        name: tensor[kept] if tensor.ndim == 2 else tensor for name, tensor in statistics.squares.items()
    }
    return replace(statistics, squares=squares)

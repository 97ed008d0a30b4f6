"""``report.html``: a self-contained report of a pruning run, with embedded pictures."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from justright.calibration.statistics import LayerStatistics
from justright.model.decoder_layer import LayerFormat
from justright.prune.clusters import Clusters, cluster
from justright.prune.criteria.base import Clustering
from justright.prune.decide import expert_similarity
from justright.prune.outcome import Pruned
from justright.prune.plan import Plan
from justright.prune.settings import Settings
from justright.readable import readable_bytes, readable_count

_EVALUATION = re.compile(r"<!-- evaluation -->.*?<!-- /evaluation -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pictures:
    """A layer's pictures: dendrogram and similarity heat map (SVG), and the order of the experts."""

    dendrogram: str
    heat_map: str
    order: list[int]


def draw(
    layers: LayerFormat, plan: Plan, settings: Settings, found: Sequence[LayerStatistics] | None
) -> dict[int, Pictures]:
    """Draw the layers whose experts were clustered; ranked experts and given plans have no pictures."""
    criterion = settings.expert_criterion
    if not isinstance(criterion, Clustering) or (criterion.needs and not found):
        return {}
    groups = layers.spec.expert_groups[0]
    pictures = {}
    for index, choice in plan.experts.items():
        statistics = found[index] if found else LayerStatistics()
        similarity = expert_similarity(layers, index, settings, statistics)
        clusters = cluster(similarity, len(choice.kept), groups)
        order = leaf_order(clusters)
        pictures[index] = Pictures(dendrogram(clusters, choice.kept), heat_map(similarity, order), order)
    return pictures


def render(done: Pruned, settings: Settings, pictures: Mapping[int, Pictures]) -> str:
    """Render the page."""
    kept = {i: set(choice.kept) for i, choice in done.plan.experts.items()}
    page = _template("report").render(
        done=done,
        settings=settings,
        pictures=pictures,
        kept=kept,
        order_of=lambda v, order: [v[i] for i in order],
    )
    return with_evaluation(page, done.evaluation)


def with_evaluation(page: str, evaluation: dict[str, Any] | None) -> str:
    """Insert the evaluation table into the page, or that there is none."""
    table = _template("evaluation").render(rows=rows(evaluation) if evaluation else ())
    return _EVALUATION.sub(lambda _: f"<!-- evaluation -->{table}<!-- /evaluation -->", page)


def rows(evaluation: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """``(task, metric, before, after)``, with 95% intervals if available."""
    after = {(f["task"], f["metric"]): f for f in evaluation["after"] or ()}

    def text(figure: dict[str, Any] | None) -> str:
        if figure is None:
            return "not measured yet"
        value = f"{figure['value']:.3f}"
        return value if figure["low"] is None else f"{value} ({figure['low']:.3f} to {figure['high']:.3f})"

    return [
        (f["task"], f["metric"], text(f), text(after.get((f["task"], f["metric"]))))
        for f in evaluation["before"]
    ]


def leaf_order(clusters: Clusters) -> list[int]:
    """Experts in the order of the dendrogram's leaves, group by group."""
    order: list[int] = []
    for tree in clusters.merges:
        order += [len(order) + leaf for leaf in _leaves(tree)]
    return order


def dendrogram(clusters: Clusters, kept: Sequence[int]) -> str:
    """Draw an SVG of the merges, their distances, the cut, and each cluster's kept expert (in bold)."""
    step, height, top = 14, 150.0, 8.0
    heights = np.concatenate([tree[:, 2] for tree in clusters.merges])
    low, high = (float(heights.min()), float(heights.max())) if len(heights) else (0.0, 1.0)
    scale = (height - 12) / max(high - low, 1e-12)

    def y(level: float | None) -> float:
        return top + height - (0.0 if level is None else 12 + (level - low) * scale)

    lines, labels, begin = [], [], 0
    each = len(clusters.members) // len(clusters.merges)
    for tree in clusters.merges:
        leaves, count = _leaves(tree), len(tree) + 1
        place = {leaf: ((begin + i + 0.5) * step, y(None)) for i, leaf in enumerate(leaves)}
        for number, (a, b, level, _) in enumerate(tree):
            (left, left_y), (right, right_y) = place[int(a)], place[int(b)]
            colour = "#0072B2" if number < count - each else "#B0B0B0"
            path = f"M{left:.1f} {left_y:.1f}V{y(level):.1f}H{right:.1f}V{right_y:.1f}"
            lines.append(f'<path d="{path}" stroke="{colour}" fill="none"/>')
            place[count + number] = ((left + right) / 2, y(level))
        for i, leaf in enumerate(leaves):
            expert, x = begin + leaf, (begin + i + 0.5) * step
            style = ' font-weight="bold" fill="#0072B2"' if expert in kept else ' fill="#888"'
            at = f'x="{x:.1f}" y="{top + height + 11:.1f}"'
            labels.append(f'<text {at} font-size="9" text-anchor="middle"{style}>{expert}</text>')
        begin += count
    width = begin * step
    return (
        f'<svg width="{width}" height="{top + height + 16:.0f}" viewBox="0 0 {width} {top + height + 16:.0f}" '
        f'role="img">{"".join(lines)}{"".join(labels)}</svg>'
    )


def heat_map(similarity: Tensor, order: Sequence[int]) -> str:
    """Draw an SVG of the pairwise similarity in the dendrogram's order, with the experts' numbers; dark means similar.

    A cell is as wide as the dendrogram's columns.
    """
    index = list(order)
    values = similarity[index][:, index].double().numpy().copy()
    off = ~np.eye(len(values), dtype=bool)
    low, high = (values[off].min(), values[off].max()) if off.any() else (0.0, 1.0)
    np.fill_diagonal(values, high)
    share = (values - low) / max(high - low, 1e-12)
    light, dark = np.array([250, 250, 252]), np.array([0, 60, 120])
    pixels = (light + share[..., None] * (dark - light)).round().astype(np.uint8)
    data = base64.b64encode(png(pixels)).decode()
    step, left, top = 14, 22, 14
    side = step * len(index)
    labels = [
        f'<text x="{left + step * (i + 0.5):.0f}" y="{top - 4}" font-size="9" text-anchor="middle">{expert}</text>'
        f'<text x="{left - 4}" y="{top + step * (i + 0.5) + 3:.0f}" font-size="9" text-anchor="end">{expert}</text>'
        for i, expert in enumerate(index)
    ]
    return (
        f'<svg class="heat" width="{left + side}" height="{top + side}" role="img" '
        f'aria-label="similarity of the experts"><image x="{left}" y="{top}" width="{side}" height="{side}" '
        f'href="data:image/png;base64,{data}"/>{"".join(labels)}</svg>'
    )


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an RGB picture ``[height, width, 3]`` as PNG."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows_ = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows_.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _leaves(tree: NDArray[np.float64]) -> list[int]:
    """The leaves of a linkage matrix from left to right."""
    count = len(tree) + 1
    under = {leaf: [leaf] for leaf in range(count)}
    for number, (a, b, _, _) in enumerate(tree):
        under[count + number] = under.pop(int(a)) + under.pop(int(b))
    [found] = under.values()
    return found


def _template(name: str) -> Any:
    text = resources.files("justright.prune").joinpath(f"{name}.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"bytes": readable_bytes, "count": readable_count, "safe_svg": _safe}
    return environment.from_string(text)


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)

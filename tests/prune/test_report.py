"""The report: valid and complete HTML, valid pictures, and the evaluation's figures in their place."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from justright.checkpoint.reader import Checkpoint
from justright.engine.loading import load_model
from justright.errors import CheckpointError, UsageError
from justright.prune.clusters import cluster
from justright.prune.outcome import read_pruned
from justright.prune.pipeline import Pruning, prune
from justright.prune.plan import Plan
from justright.prune.report import dendrogram, heat_map, leaf_order, png
from justright.prune.settings import Settings

Get = Callable[[str], Path]


def chosen(texts: str, **changes: Any) -> Settings:
    return Settings(**({"calibration": (texts,), "sequences": 6, "length": 40, "min_tokens": 4} | changes))


class Balanced(HTMLParser):
    """Checks that every tag is closed in order."""

    VOID = ("meta", "img", "path", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balanced:
    found = Balanced()
    found.feed(page)
    assert not found.open
    return found


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    """Decode an RGB picture without filters."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    at = data.index(b"IDAT")
    size = struct.unpack(">I", data[at - 4 : at])[0]
    rows = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + size]), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape(height, width, 3)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 9), st.data(), st.integers(0, 1000))
def test_every_expert_is_a_leaf_of_the_tree(groups: int, size: int, data: st.DataObject, seed: int) -> None:
    count = groups * data.draw(st.integers(1, size))
    values = torch.rand(groups * size, groups * size, generator=torch.Generator().manual_seed(seed))
    found = cluster(values + values.T, count, groups)
    order = leaf_order(found)
    assert sorted(order) == list(range(groups * size))
    place = {expert: i for i, expert in enumerate(order)}
    for members in found.members:  # trees do not cross: a cluster is a run of neighbours
        at = sorted(place[e] for e in members)
        assert at == list(range(at[0], at[-1] + 1))
    picture = dendrogram(found, [members[0] for members in found.members])
    assert picture.count("<path") == groups * (size - 1)
    assert picture.count('stroke="#B0B0B0"') == count - groups
    assert picture.count('font-weight="bold"') == count


def test_pictures_are_pictures() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert (pixels(png(values)) == values).all()
    alike = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 0.5, 0.0]])
    picture = heat_map(alike, [2, 0, 1])
    [data] = re.findall(r"base64,([^\"]*)", picture)
    shown = pixels(base64.b64decode(data)).astype(int).sum(-1)
    labels = re.findall(r'<text x="(\d+)" y="(\d+)"[^>]*>(\d+)<', picture)
    columns = sorted((int(x), int(n)) for x, y, n in labels if int(y) < 14)
    rows = sorted((int(y), int(n)) for x, y, n in labels if int(x) < 22)
    assert [n for _, n in columns] == [n for _, n in rows] == [2, 0, 1]
    assert shown[1, 2] == shown[0, 0] < shown[0, 2] < shown[0, 1], (
        "dark cells are similar experts, in the given order"
    )


@pytest.mark.parametrize(
    ("family", "changes", "trees"),
    [
        ("qwen3_moe", {"sparsity": 0.5}, 2),
        ("deepseek_v2", {"sparsity": 0.6, "expert_sparsity": 0.5}, 3),
        ("olmoe", {"sparsity": 0.5, "criterion": "reap"}, 0),
        ("mixtral", {"sparsity": 0.6, "criterion": "router", "weights": "magnitude"}, 4),
        ("llama", {"sparsity": 0.5, "weights": "magnitude"}, 0),
        ("olmoe", {"sparsity": 0.5, "uneven": True}, 4),
    ],
)
def test_the_page_has_everything(
    checkpoint: Get, texts: str, tmp_path: Path, family: str, changes: dict[str, Any], trees: int
) -> None:
    out = tmp_path / "<b>out"  # names are escaped
    done = prune(checkpoint(family), out, chosen(texts, **changes), rows=4)
    page = (out / "report.html").read_text()
    found = parsed(page)
    assert "<b>out" not in page
    assert "http" not in page, "nothing is fetched"
    assert found.seen.count("image") == trees
    assert "The quality of this model was not measured" in page
    assert f"Pruned from {checkpoint(family).name} (" in page
    nonzero = total = 0
    for name, tensor in load_file(out / "model.safetensors").items():
        if ".layers." in name and tensor.ndim > 1 and not re.search(r"\.(router|gate)\.weight", name):
            nonzero += int(tensor.count_nonzero())
            total += tensor.numel()
    zeros = 1 - nonzero / total
    assert done.zeros == pytest.approx(zeros, abs=1e-9)
    assert f"<b>{100 * zeros:.0f}%</b>zeros in the remaining weights" in page
    assert f"zeros in the remaining weights: {zeros:.0%} (no memory saved)" in done.summary
    if done.plan.experts:
        counts = done.plan.counts.values()
        gone = 1 - sum(counts) / len(counts) / done.plan.num_experts
        assert f"<b>{100 * gone:.0f}%</b>of the experts removed" in page
        assert done.summary.startswith(f"experts removed: {gone:.0%}; ")
    for number, layer in enumerate(done.layers):
        assert f"{100 * layer.zeros:.1f}%" in page
        if layer.experts:
            assert f"Layer {number}: {layer.kept} of {layer.experts} kept" in page
    assert read_pruned(out) == done
    assert done.memory_bytes[1] <= done.memory_bytes[0]
    assert done.parameters[0] - done.parameters[1] >= done.sizes.removed


def test_experts_alone_come_nearest_to_the_target(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model = checkpoint("olmoe")
    done = prune(model, tmp_path / "out", chosen(texts, sparsity=0.4, weights="none"), rows=4)
    one = done.sizes.removed / done.sizes.prunable / (8 - done.plan.kept)
    assert abs(done.sparsity - 0.4) <= one / 2 + 1e-9
    assert all(layer.zeros == 0 for layer in done.layers)
    with pytest.raises(UsageError, match="with --weights none nothing can be removed"):
        Pruning(checkpoint("llama"), chosen(texts, weights="none"))


def test_a_sparse_store_is_the_same_model(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model, wanted = checkpoint("qwen3_moe"), chosen(texts, sparsity=0.6)
    dense = Pruning(model, wanted, rows=4).run(tmp_path / "dense")
    pruning = Pruning(model, wanted, rows=4)
    sparse = pruning.run(tmp_path / "sparse", store="sparse")
    assert sparse.plan == dense.plan
    assert sparse.disk_bytes[1] < 0.8 * dense.disk_bytes[1]
    assert sparse.memory_bytes == dense.memory_bytes
    assert sparse.disk_bytes[1] == pytest.approx(pruning.estimate("sparse").size_bytes, rel=0.1)
    a, b = (
        load_model(tmp_path / n, dtype=torch.float32, device=torch.device("cpu")) for n in ("dense", "sparse")
    )
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name])
    again = Pruning(tmp_path / "sparse", chosen(texts, sparsity=0.7, expert_sparsity=0.0), rows=4)
    assert again.run(tmp_path / "again").sparsity > 0.65, "a container is a checkpoint like any other"


def figures(value: float) -> list[dict[str, Any]]:
    return [{"task": "sums", "metric": "right", "value": value, "low": value - 0.1, "high": value + 0.1}]


def test_evaluation_before_and_after_and_interrupted(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model, wanted, out = checkpoint("olmoe"), chosen(texts, sparsity=0.5), tmp_path / "out"
    asked = {"tasks": ["sums"]}
    seen: list[Path] = []

    def measure(path: Path, stop: bool = False) -> list[dict[str, Any]]:
        seen.append(path)
        if stop and path == out:
            raise KeyboardInterrupt
        return figures(0.9 if path == model else 0.7)

    def cut(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("weights", 2):
            raise KeyboardInterrupt

    def run(tick: Any = lambda *_: None, **options: Any) -> Any:
        return Pruning(model, wanted, rows=4).run(out, tick, asked=asked, **options)

    with pytest.raises(KeyboardInterrupt):
        run(cut, evaluate=measure)
    with pytest.raises(KeyboardInterrupt):
        run(evaluate=lambda path: measure(path, stop=True))
    assert seen == [model, out], "what was measured before is kept"
    assert "not measured yet" in (out / "report.html").read_text()
    assert read_pruned(out).evaluation == {"asked": asked, "before": figures(0.9), "after": None}
    weights = (out / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        run()
    done = run(evaluate=measure)
    assert seen == [model, out, out], "only the second half is measured"
    assert done.evaluation["after"] == figures(0.7)
    page = (out / "report.html").read_text()
    assert "was not measured" not in page
    assert "0.900 (0.800 to 1.000)</td><td>0.700 (0.600 to 0.800)" in page
    parsed(page)
    assert (out / "model.safetensors").read_bytes() == weights
    with pytest.raises(UsageError, match="exists already"):
        run(evaluate=measure)
    assert json.loads((out / "prune.json").read_text())["evaluation"]["after"] == figures(0.7)
    assert Plan.read(out / "plan.json") == done.plan


def test_a_tokenizer_of_another_model_is_refused(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    most = Checkpoint.open(model).shape("model.embed_tokens.weight")[0]
    tokenizer["added_tokens"].append(
        tokenizer["added_tokens"][0] | {"id": most + 9, "content": " the lazy", "special": False}
    )
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Pruning(model, chosen(texts))

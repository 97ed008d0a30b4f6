"""``justright switch extract``: an adapter of a pair, its JSON, and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cli_helpers import Run
from tiny import save_tiny


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    slow, fast = save_tiny("llama", folder / "slow"), save_tiny("llama", folder / "fast")
    tensors = load_file(slow / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name][:8] += 0.01 * tensors[name][8:16]
    tensors["model.norm.weight"] += 0.1
    save_file(tensors, slow / "model.safetensors", {"format": "pt"})
    return slow, fast


def test_it_extracts(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("switch", "extract", *pair, "-o", tmp_path / "out", "--value", 0.999, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found == json.loads((tmp_path / "out" / "switch.json").read_text())
    assert [name for name, rank in found["ranks"].items() if rank] == ["layers.2.mlp.up_proj.weight"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    shown = run("switch", "extract", *pair, "-o", tmp_path / "merged", "--form", "merged")
    assert shown.code == 0, shown.err
    assert "model.norm.weight" in shown.err
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--rule", "luck"), 2, "energy, entropy"),
        (("--value", "2"), 2, "allowed is above 0 to 1"),
        (("--form", "zip"), 2, "compact, portable"),
        (("--factor", "0.5"), 2, "merged checkpoint only"),
        (("--budget", "10"), 2, "too small"),
        (("--dtype", "int8"), 2, "int8"),
        (("--rule", "entropy", "--value", "0.5"), 2, "--value has no meaning"),
        (("--budget", "5000", "--value", "0.5"), 2, "--value has no meaning"),
        (("--rule", "fixed", "--value", "2", "--power", "1"), 2, "--power has no meaning"),
        (("--form", "merged", "--dtype", "bfloat16"), 2, "--dtype has no meaning"),
        (("--rule", "fixed", "--value", "2", "--budget", "5000"), 2, "no meaning"),
        (("--rule", "entropy", "--budget", "5000"), 2, "looks at no energy"),
    ],
)
def test_bad_input(
    run: Run, pair: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run("switch", "extract", *pair, "-o", tmp_path / "out", *arguments)
    assert result.code == code, result.err
    assert message in result.err
    assert not (tmp_path / "out").exists()

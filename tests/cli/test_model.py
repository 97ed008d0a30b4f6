"""`justright path` and `justright inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import Run


def test_path_prints_only_the_directory(run: Run, tiny_llama: Path) -> None:
    result = run("path", tiny_llama)
    assert (result.code, result.out, result.err) == (0, f"{tiny_llama.resolve()}\n", "")


def test_path_as_json(run: Run, tiny_llama: Path) -> None:
    found = json.loads(run("path", tiny_llama, "--json").out)
    assert found == {
        "path": str(tiny_llama.resolve()),
        "name": str(tiny_llama),
        "kind": "local",
        "revision": None,
    }


def test_inspect_shows_the_parts(run: Run, tiny_llama: Path) -> None:
    result = run("inspect", tiny_llama)
    assert result.code == 0
    for word in ("llama", "512 tokens", "embedding", "attention", "mlp", "float32", "cache", "prune experts"):
        assert word in result.out


def test_inspect_as_json(run: Run, tiny_llama: Path) -> None:
    found = json.loads(run("inspect", tiny_llama, "--json").out)
    assert found["family"] == "llama"
    assert found["model"] == str(tiny_llama)
    assert sum(found["parameters"].values()) == found["total"]


def test_inspect_refuses_an_unknown_family(run: Run, broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text()) | {"model_type": "gpt_neox"}
    (broken / "config.json").write_text(json.dumps(config))
    result = run("inspect", broken, "--json")
    assert result.code == 4
    assert json.loads(result.out)["error"]["type"] == "UnsupportedModelError"

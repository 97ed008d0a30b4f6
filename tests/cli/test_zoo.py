"""``justright zoo``, ``justright eval`` and ``justright bench longset``: their output and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli_helpers import Run
from justright_zoo import manifest


def test_the_zoo_is_listed(run: Run) -> None:
    result = run("zoo", "--json")
    assert result.code == 0
    listed = [json.loads(line) for line in result.out.splitlines()]
    assert [card["name"] for card in listed] == list(manifest())
    assert all(card["summary"] and card["measured"]["machine"] for card in listed)
    shown = run("zoo").out
    assert all(f"zoo:{name}" in shown for name in manifest())


@pytest.mark.parametrize("command", ["measure", "build"])
def test_an_unknown_recipe_is_named(run: Run, command: str) -> None:
    result = run("zoo", command, "dodo")
    assert result.code == 3
    assert "dodo" in result.err
    assert "moe" in result.err


def test_a_picture_without_matplotlib_is_refused_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("zoo", "measure", "moe", "--picture", tmp_path / "routing.png")
    assert result.code == 6
    assert "in the checkout of justright: pip install '.[plots]'" in result.err


@pytest.mark.usefixtures("lm_eval_index")
def test_eval_without_a_model_or_task_is_refused(run: Run, tiny_llama: Path) -> None:
    assert run("eval", "--tasks", "zoo_chain_1").code == 2
    assert run("eval", tiny_llama).code == 2
    result = run("eval", tiny_llama, "--tasks", "no_such_task")
    assert result.code == 3
    assert "no_such_task" in result.err


def test_eval_lists_the_zoos_tasks(run: Run) -> None:
    listed = run("eval", "--list").out.split()
    assert {"zoo_chain", "zoo_story_8", "zoo_text_fiction"} <= set(listed)


@pytest.mark.usefixtures("lm_eval_index")
def test_eval_runs_a_task_of_the_zoo(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = run(
        *("eval", tiny_llama, "--tasks", "zoo_chain_1", "--chat", "--limit", "4", "--json", "--out", out)
    )
    assert result.code == 0, result.err
    figure, loose = (json.loads(line) for line in result.out.splitlines())
    kept = json.loads(out.read_text())
    for made in (figure, loose, kept):
        assert made["model"] == str(tiny_llama)
        assert made["tasks"] == ["zoo_chain_1"]
        assert made["options"]["dtype"] == "float32"
        assert made["options"]["draft"] == "none"
        assert made["options"]["limit"] == 4
        assert made["options"]["chat"] is True
        assert {"torch", "lm_eval"} <= set(made["made_by"]["versions"])
    assert loose["metric"] == "exact_match,last-number"
    assert figure["task"] == "zoo_chain_1"
    assert figure["metric"] == "exact_match,strict"
    assert figure["documents"] == 4
    assert figure["value"] == 0, "random weights know no arithmetic"
    assert figure["high"] > 0.3, "four documents say little"
    assert kept["figures"] == [{k: one[k] for k in one if k not in kept} for one in (figure, loose)]


@pytest.mark.parametrize("out", ["", "no/such/folder/figures.json"])
def test_eval_refuses_a_file_that_cannot_be_written_before_it_loads(
    run: Run, tiny_llama: Path, tmp_path: Path, no_weights_loaded: None, out: str
) -> None:
    result = run("eval", tiny_llama, "--tasks", "zoo_chain_1", "--out", tmp_path / out)
    assert result.code == 2
    assert result.err.startswith(f"error: {tmp_path / out} ")


def test_longset_from_a_folder(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(
        "\n\n".join(f"This is the story of number {i}. It was long ago." for i in range(900))
    )
    out = tmp_path / "set.jsonl"
    result = run(
        *("bench", "longset", "--texts", texts, "--tokenizer", tiny_llama, "--buckets", "1024,2048"),
        *("--kinds", "summarise,continue", "--out", out, "--json"),
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["prompts"] == 8
    kinds = [json.loads(line)["kind"] for line in out.read_text().splitlines()]
    assert kinds == ["summarise"] * 4 + ["continue"] * 4


def test_longset_of_an_unknown_kind(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    result = run(
        "bench", "longset", "--tokenizer", tiny_llama, "--kinds", "poem", "--out", tmp_path / "x.jsonl"
    )
    assert result.code == 2
    assert "poem" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--buckets", "10"], "the buckets are 10; allowed"),
        (["--buckets", "-5"], "the buckets are -5; allowed"),
        (["--buckets", ","], "the buckets are none; allowed"),
        (["--out", "no/such/folder/x.jsonl"], "there is no folder no/such/folder"),
        (["--out", "."], ". is a folder"),
        (["--wildchat", "--texts", "."], "give one of them"),
    ],
)
def test_longset_refuses_with_the_reason(
    run: Run, tiny_llama: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    start = ["bench", "longset", "--tokenizer", tiny_llama, "--out", tmp_path / "x.jsonl"]
    result = run(*start, *options)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert message in result.err

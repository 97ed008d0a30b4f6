"""``justright prune``: a dry run that writes nothing, a run, its JSON, and input that it rejects before work."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from cli_helpers import Run
from justright.checkpoint.reader import Checkpoint
from tiny import save_tiny


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("moe") / "model")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "words.txt"
    file.write_text("the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60)
    return file


SMALL = ("--sequences", 4, "--length", 40, "--min-tokens", 2)


def test_a_dry_run_tells_and_writes_nothing(run: Run, moe: Path, texts: Path, tmp_path: Path) -> None:
    result = run("prune", moe, "--dry-run", "--json", "--calibration", texts, *SMALL)
    assert result.code == 0
    found = json.loads(result.out)
    assert found["experts_before"] == 8
    assert found["experts_after"] == 6
    assert found["passes"] == 3
    assert found["seconds"] > 0
    text = run("prune", moe, "--dry-run", "--calibration", texts, *SMALL).out
    assert "experts per layer: 8 -> 6" in text
    assert not list(tmp_path.iterdir())


def test_it_prunes(run: Run, moe: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("prune", moe, "-o", out, "--sparsity", 0.5, "--calibration", f"{texts}=2", "--json", *SMALL)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found == json.loads((out / "prune.json").read_text())
    assert 0.47 < found["sparsity"] <= 0.5
    assert Checkpoint.open(out).spec.num_experts == 6
    for name in ("plan.json", "provenance.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).is_file(), name
    shown = run("generate", out, "-p", "the quick", "--max-tokens", 2, "--json")
    assert shown.code == 0
    again = run("prune", moe, "-o", tmp_path / "two", "--plan", out / "plan.json")
    assert again.code == 0
    assert "experts removed: 25%; zeros in the remaining weights: " in again.out
    assert "(no memory saved); memory: " in again.out
    assert "quality: not measured" in again.out


@pytest.mark.usefixtures("lm_eval_index")
def test_evaluated_sparse_uneven_and_unpacked(run: Run, moe: Path, texts: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    options = ("--sparsity", 0.6, "--uneven", "--store", "sparse", "--calibration", texts, *SMALL)
    measured = ("--eval", "zoo_story_1", "--eval-limit", 2, "--eval-chat")
    result = run("prune", moe, "-o", out, *options, *measured, "--json")
    assert result.code == 0, result.err
    evaluation = json.loads(result.out)["evaluation"]
    assert evaluation["asked"] == {"tasks": ["zoo_story_1"], "limit": 2, "chat": True}
    for figures in (evaluation["before"], evaluation["after"]):
        assert {(f["task"], f["documents"]) for f in figures} == {("zoo_story_1", 2)}
    assert (out / "model.sparse.safetensors").is_file()
    assert "zoo_story_1" in (out / "report.html").read_text()
    unpacked = run("unpack", out, "-o", back)
    assert unpacked.code == 0, unpacked.err
    assert "only justright" in unpacked.err
    assert (back / "model.safetensors").is_file()
    assert (back / "report.html").is_file()
    answers = [run("generate", m, "-p", "the quick", "--max-tokens", 4, "--json").out for m in (out, back)]
    texts_of = [json.loads(answer)["token_ids"] for answer in answers]
    assert texts_of[0] == texts_of[1]
    again = run("unpack", back, "-o", tmp_path / "more")
    assert again.code == 2
    assert "already an ordinary checkpoint" in again.err


def test_a_carried_set_is_the_default(run: Run, moe: Path) -> None:
    result = run("prune", moe, "--dry-run", "--sequences", 6, "--length", 40)
    assert result.code == 0, result.err


@pytest.mark.usefixtures("lm_eval_index")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "--out"),
        (("-o", "OUT", "--plan", "p.json", "--seed", "3"), 2, "leave out --seed"),
        (("-o", "OUT", "--plan", "p.json", "--weights", "wanda"), 2, "leave out --weights"),
        (
            ("-o", "OUT", "--criterion", "router", "--weights", "magnitude", "--calibration", "zoo:c"),
            2,
            "need no calibration texts",
        ),
        (("-o", "OUT", "--store", "zip"), 2, "allowed: dense, sparse"),
        (("-o", "OUT", "--eval", "no_such_task"), 3, "no evaluation task"),
        (("-o", "OUT", "--eval-limit", "3"), 2, "no effect without --eval TASKS"),
        (
            ("-o", "OUT", "--weights", "none", "--sparsity", "0.4", "--expert-sparsity", "0.25"),
            2,
            "removes only experts",
        ),
        (("-o", "OUT", "--uneven", "--criterion", "reap"), 2, "needs a criterion that clusters experts"),
        (("-o", "OUT", "--device", "cpu,abacus"), 2, "cannot be used"),
        (("-o", "OUT", "--sparsity", "1"), 2, "allowed: 0 to below 1"),
        (("-o", "OUT", "--criterion", "best"), 2, "stun"),
        (("-o", "OUT", "--calibration", "nowhere.txt"), 3, "no calibration texts"),
        (("-o", "OUT", "--calibration", "zoo:poetry"), 3, "fiction"),
        (("-o", "OUT", "--calibration", "zoo=none"), 2, "SHARE"),
        (("-o", "OUT", "--expert-sparsity", "0.9", "--sparsity", "0.95"), 2, "at least 2"),
        (("-o", "OUT", "--plan", "nowhere.json"), 3, "cannot be read"),
        (("-o", "OUT", "--dtype", "int8"), 2, "int8"),
        (("-o", "."), 2, "exists already"),
        (("-o", "OUT", "--plan", "p.json", "--sparsity", "0.4"), 2, "leave out --sparsity"),
        (("-o", "OUT", "--criterion", "router", "--statistics", "OUT"), 2, "leave --statistics out"),
    ],
)
def test_bad_input(
    run: Run, moe: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    words = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    result = run("prune", moe, *words)
    assert result.code == code, result.err
    assert message in result.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_limit_of_file_sizes_is_an_error_that_tells_how_to_continue(
    run: Run, moe: Path, texts: Path, tmp_path: Path
) -> None:
    """``ulimit -f``: the kernel rejects the first larger file, as with a full disk."""
    words = ("prune", moe, "-o", tmp_path / "out", "--calibration", texts, *SMALL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        result = run(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.code == 5, result.err
    assert "larger than is allowed (`ulimit -f`" in result.err
    assert "repeat the command" in result.err
    assert not (tmp_path / "out").exists()
    assert run(*words).code == 0

"""``justright draft`` and ``bench longspec`` from the command line."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest

from cli_helpers import Run
from draft_helpers import SMALL_TRAINING
from justright.cli.draft import train
from justright.training.pipeline import DrafterShape
from justright.training.self_generated import DataSetting
from justright.training.trainer import TrainSetting
from tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("m") / "model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("t") / "words.txt"
    file.write_text(" ".join(f"word{(i * i) % 17}" for i in range(4000)))
    return str(file)


def test_the_commands_defaults_are_the_codes() -> None:
    settings = {
        one.name: one.default for kind in (DataSetting, TrainSetting, DrafterShape) for one in fields(kind)
    }
    options = {name: one.default for name, one in inspect.signature(train).parameters.items()}
    assert len(shared := settings.keys() & options.keys()) > 15
    assert {name: options[name] for name in shared} == {name: settings[name] for name in shared}


def test_a_shipped_drafter_is_inspected_by_its_models_name(run: Run, tmp_path: Path) -> None:
    seen = run("draft", "inspect", "zoo:slow", "--picture", tmp_path / "curve.png")
    assert seen.code == 0, seen.err
    assert "LSTM drafter, width 256, 5 steps" in seen.out
    assert (tmp_path / "curve.png").exists()
    assert run("draft", "inspect", "zoo:nobody").code != 0


def test_train_inspect_and_use(run: Run, model: str, texts: str, tmp_path: Path) -> None:
    out = tmp_path / "drafter"
    dry = run("draft", "train", model, "--dry-run", "--texts", texts, *SMALL_TRAINING)
    assert dry.code == 0
    assert "Data: 576 tokens" in dry.out
    assert not out.exists()
    made = run("draft", "train", model, "-o", out, "--texts", texts, *SMALL_TRAINING, "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["config"]["spec"] is True
    assert "acceptance length" not in made.err
    seen = run("draft", "inspect", out, "--picture", tmp_path / "curve.png")
    assert seen.code == 0
    assert "LSTM drafter, width 32, 3 steps" in seen.out
    assert "without [SPEC]; " in seen.out
    assert (tmp_path / "curve.png").exists()
    plain = run("generate", model, "-p", "word1 word4", "--raw", "--max-tokens", "12", "--json")
    for name in ("lstm", "hybrid"):
        used = run(
            *("generate", model, "-p", "word1 word4", "--raw", "--max-tokens", "12", "--json"),
            *("--draft", name, "--draft-option", f"path={out}"),
        )
        assert used.code == 0, used.err
        assert json.loads(used.out)["token_ids"] == json.loads(plain.out)["token_ids"]
    again = run("draft", "train", model, "-o", out, "--texts", texts, *SMALL_TRAINING)
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draft", "train", "MODEL"], "there is no output directory"),
        (["draft", "train", "MODEL", "-o", "OUT", "--temperature", "0"], "temperature is 0.0"),
        (["draft", "train", "MODEL", "-o", "OUT", "--cell", "gru"], "cell is 'gru'"),
        (["draft", "train", "MODEL", "-o", "OUT", "--rate", "0"], "rate is 0.0"),
        (["draft", "train", "MODEL", "-o", "OUT", "--texts", "nowhere"], "no calibration texts 'nowhere'"),
        (
            ["draft", "train", "MODEL", "-o", "OUT", "--no-spec", "--spec-steps", "9"],
            "no effect without [SPEC]",
        ),
        (["draft", "train", "MODEL", "-o", "OUT", "--cell", "attention", "--width", "9"], "omit width"),
        (["draft", "train", "MODEL", "-o", "OUT", "--cell", "attention", "--spec"], "has no [SPEC]"),
        (["draft", "train", "MODEL", "-o", "OUT", "--device", "tpu"], "allowed: auto, cpu"),
        (["draft", "inspect", "./nowhere"], "neither a directory nor a hub id"),
        (["draft", "inspect", "MODEL"], "allowed for a drafter"),
        (["generate", "MODEL", "-p", "a", "--draft", "lstm"], "justright draft train"),
        (["bench", "longspec", "MODEL", "--draft", "nobody"], "no contender is called 'nobody'"),
        (["bench", "longspec", "MODEL", "--draft", "lstm:path"], "give KEY=VALUE"),
        (["bench", "longspec", "MODEL", "--kinds", "songs"], "kinds songs"),
    ],
)
def test_bad_input(run: Run, model: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"MODEL": model, "OUT": str(tmp_path / "out")}
    done = run(*(places.get(word, word) for word in arguments))
    assert done.code in (2, 3)
    assert message in done.err
    assert not (tmp_path / "out").exists()

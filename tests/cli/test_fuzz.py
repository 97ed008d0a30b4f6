"""Fuzzing of foreign files and paths: each gives a result, or an error that says what to do."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Run
from draft_helpers import saved_attention_drafter, saved_drafter
from justright.adapter.adapter import read_adapter
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.engine.llm import LLM
from justright.errors import JustrightError
from justright.model.summary import inspect
from justright.prune.pipeline import Pruning
from justright.prune.settings import Settings
from justright.speculative.lstm_network import LstmConfig
from justright.speculative.store import read_about, read_config
from tiny import save_pair, save_tiny, tiny_model

MUTATIONS = 120  # per kind of file
STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        3,
        10**30,
        1e308,
        float("nan"),
        "",
        "x",
        "\0",
        "../x",
        "a/b",
        "~nosuchuser/x",
        "ä" * 300,
    ),
    *([], {}, [[]], [None], {"a": []}, {"": {}}, [{"a": 1}]),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All paths in a JSON value at which it can be changed."""
    yield at
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in list(children)[:40]:
        yield from places(child, (*at, key))


def mutated(text: str, rng: random.Random) -> bytes:
    """The text of a JSON file with one defect."""
    if rng.random() < 0.15:  # not JSON any more, or not UTF-8
        data = bytearray(text.encode())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data[: rng.randrange(len(data)) if rng.random() < 0.3 else len(data)])
    value = copy.deepcopy(json.loads(text))
    *way, last = rng.choice([place for place in places(value) if place] or [("x",)])
    holder = value
    for key in way:
        holder = holder[key]
    if rng.random() < 0.25:
        del holder[last]
    else:
        holder[last] = copy.deepcopy(rng.choice(STRANGE))
    return json.dumps(value if rng.random() > 0.03 else rng.choice(STRANGE)).encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in shards, a mixture, an adapter, two kinds of drafters."""
    folder = tmp_path_factory.mktemp("made")
    tiny_model("llama").save_pretrained(folder / "sharded", max_shard_size="200KB")
    save_tiny("qwen3_moe", folder / "moe")
    slow, fast = save_pair(folder)
    extract(Pair(slow, fast), folder / "adapter", RankRule("energy", 1.0))
    saved_drafter(tiny_model("llama"), folder / "lstm")
    saved_attention_drafter(tiny_model("llama"), folder / "attention")
    return folder


def about(folder: Path) -> None:
    read_about(folder)
    read_config(folder, "lstm", LstmConfig)


def plan_of(path: Path) -> None:
    Pruning(path, Settings(criterion="router", weights="magnitude", sparsity=0.3)).estimate()


def load(path: Path) -> None:
    LLM(str(path), draft="none", switch="none")


CASES: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "index": ("sharded", "model.safetensors.index.json", inspect),
    "config": ("moe", "config.json", inspect),
    "peft": ("adapter", "adapter_config.json", read_adapter),
    "switch": ("adapter", "switch.json", read_adapter),
    "drafter": ("lstm", "config.json", about),
    "pruned": ("moe", "config.json", plan_of),
    "generation": ("moe", "generation_config.json", load),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mutated_file_gives_a_result_or_a_clear_error(name: str, made: Path, tmp_path: Path) -> None:
    folder, file, read = CASES[name]
    copied = Path(shutil.copytree(made / folder, tmp_path / folder))
    text = (copied / file).read_text()
    rng, refused = random.Random(name), 0
    count = MUTATIONS // 3 if read in (plan_of, load) else MUTATIONS  # these take 0.2 s each
    for number in range(count):
        data = mutated(text, rng)
        (copied / file).write_bytes(data)
        try:
            read(copied)
        except JustrightError:
            refused += 1
        except Exception as error:
            raise AssertionError(
                f"{name} {number}: {type(error).__name__}: {error}: {data[:2000]!r}"
            ) from error
    assert refused > count // 10, "mutations that change nothing prove nothing"


def test_a_mutated_header_gives_a_result_or_a_clear_error(made: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(made / "moe", tmp_path / "moe"))
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    rng, refused = random.Random(0), 0
    for number in range(MUTATIONS):
        header = mutated(whole[8 : 8 + length].decode(), rng)
        size = len(header) if rng.random() < 0.9 else rng.choice((0, 7, 2**40, 2**63))
        file.write_bytes(struct.pack("<Q", size) + header + whole[8 + length :])
        try:
            inspect(copied)
        except JustrightError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{number}: {type(error).__name__}: {error}: {header[:300]!r}") from error
    assert refused > MUTATIONS // 2


PATHS = ("~nosuchuser/x", "~", "", ".", "/", "/dev/null", "a\0b", "x" * 5000, "/proc/self/mem", "zoo:", "packaged:~/x",
         "hub:", "a/b/c", "//", "\udcff", "ä/ö", "..", "-", "a b")  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "PATH"),
        ("generate", "PATH", "-p", "x"),
        ("prune", "PATH", "-o", "OUT", "--sparsity", "0.3"),
        ("prune", "MODEL", "-o", "PATH", "--calibration", "PATH", "--dry-run"),
        ("switch", "extract", "PATH", "MODEL", "--dry-run"),
        ("switch", "inspect", "PATH"),
        ("generate", "MODEL", "-p", "x", "--switch", "PATH"),
        ("generate", "MODEL", "-p", "x", "--draft", "lstm", "--draft-option", "path=PATH"),
        ("draft", "inspect", "PATH"),
        ("draft", "train", "MODEL", "-o", "OUT", "--texts", "PATH", "--dry-run"),
        ("bundle", "PATH", "-o", "OUT"),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_strange_path_gives_a_result_or_a_clear_error(
    words: tuple[str, ...], path: str, run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stand_in = {"PATH": path, "MODEL": str(made / "moe"), "OUT": str(tmp_path / "out")}
    result = run(*(stand_in.get(w, w.replace("PATH", path)) for w in words))
    assert "bug in justright" not in result.err, result.err

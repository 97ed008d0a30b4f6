"""Every kind of bad input: a clear message, its exit code, no traceback, and before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_helpers import Run

pytestmark = pytest.mark.usefixtures("no_weights_loaded")


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def split(path: Path) -> None:
    """Rewrite the weights as two shards with an index."""
    whole = path / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name].clone() for name in half}, path / file, {"format": "pt"})
    weight_map = {name: file for file, half in halves.items() for name in half}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def missing_shard(path: Path) -> None:
    split(path)
    (path / "model-2.safetensors").unlink()


def truncated_shard(path: Path) -> None:
    split(path)
    shard = path / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def bad_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("{}")


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


def config_not_json(path: Path) -> None:
    (path / "config.json").write_text("{,}")


def unknown_family(path: Path) -> None:
    edit_config(path, model_type="gpt_neox")


def recurrent_family(path: Path) -> None:
    edit_config(path, model_type="mamba")


DAMAGE = [
    (missing_shard, 3, "lacks 1 of its 2 shards"),
    (truncated_shard, 3, "truncated"),
    (pickle_only, 3, "pickled weights"),
    (no_tokenizer, 3, "has no tokenizer"),
    (bad_tokenizer, 3, "tokenizer"),
    (no_config, 3, "config.json"),
    (config_not_json, 3, "config.json"),
    (unknown_family, 4, "not in the architecture table"),
    (recurrent_family, 4, "recurrent"),
]


@pytest.mark.parametrize(("damage", "code", "message"), DAMAGE, ids=[d[0].__name__ for d in DAMAGE])
def test_damaged_or_unsupported(
    run: Run, broken: Path, damage: Callable[[Path], None], code: int, message: str
) -> None:
    damage(broken)
    result = run("generate", broken, "-p", "hello")
    assert result.code == code
    assert message in result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert result.out == ""


OPTIONS = [
    (["--dtype", "float31"], 2, "dtype is 'float31'; allowed: float32"),
    (["--temperature", "-1"], 2, "temperature is -1.0"),
    (["--top-p", "0"], 2, "top_p is 0.0"),
    (["--min-p", "1.5"], 2, "min_p is 1.5"),
    (["--top-k", "-3"], 2, "top_k is -3"),
    (["--repetition-penalty", "0"], 2, "repetition_penalty is 0.0"),
    (["--max-tokens", "0"], 2, "--max-tokens"),
    (["--max-context", "1"], 2, "max_context is 1"),
    (["--cpu-kernels", "fast"], 2, "cpu_kernels is 'fast'; allowed: packed, plain"),
    (["--cache", "none"], 2, "cache is 'none'; allowed: grow, static"),
    (["--device", "toaster"], 2, "'toaster' cannot be used"),
    (["--draft", "oracle"], 2, "unknown drafter 'oracle'"),
    (["--no-such-option"], 2, "No such option"),
    (["--system", "be kind", "--raw"], 2, "--system needs a model with a chat template"),
    (["-p", "-", "-p", "-"], 2, "stdin can be read only once"),
    (["-f", "no-such-file.txt"], 2, "no-such-file.txt"),
]


@pytest.mark.parametrize(("options", "code", "message"), OPTIONS, ids=[" ".join(o[0]) for o in OPTIONS])
def test_bad_options(run: Run, tiny_llama: Path, options: list[str], code: int, message: str) -> None:
    result = run("generate", tiny_llama, "-p", "hello", *options)
    assert result.code == code
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.parametrize("prompt", [[], ["-p", ""], ["-p", " \n"], ["-p", "-"], ["-p", "x", "-p", ""]])
def test_empty_prompt(run: Run, tiny_llama: Path, prompt: list[str]) -> None:
    result = run("generate", tiny_llama, *prompt)
    assert result.code == 2
    assert "prompt" in result.err


def test_prompt_longer_than_the_context(run: Run, tiny_llama: Path) -> None:
    result = run("generate", tiny_llama, "--raw", "-p", "the quick brown fox " * 200)
    assert result.code == 5
    assert "the context holds 512" in result.err


def test_a_smaller_context_of_the_users_own(run: Run, tiny_llama: Path) -> None:
    result = run("generate", tiny_llama, "--raw", "--max-context", 16, "-p", "the quick brown fox " * 20)
    assert result.code == 5
    assert "the context holds 16" in result.err


@pytest.mark.parametrize("command", ["path", "inspect", "chat", "generate"])
def test_no_such_model(run: Run, command: str) -> None:
    result = run(command, "no-such-model", *(["-p", "x"] if command == "generate" else []))
    assert result.code == 3
    assert "no model 'no-such-model'" in result.err


def test_chat_refuses_a_model_without_template(run: Run, broken: Path) -> None:
    (broken / "chat_template.jinja").unlink()
    result = run("chat", broken)
    assert result.code == 2
    assert "no chat template" in result.err


def test_json_reports_the_error_on_stdout_as_well(run: Run, tiny_llama: Path) -> None:
    result = run("generate", tiny_llama, "--json", "-p", "hello", "--dtype", "int3")
    error = json.loads(result.out)["error"]
    assert error["type"] == "UsageError"
    assert error["exit_code"] == result.code == 2
    assert error["message"] in result.err


def quantised_by_config(path: Path) -> None:
    edit_config(path, quantization_config={"quant_method": "fp8"})


def quantised_by_dtype(path: Path) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, file, {"format": "pt"})


ENTRIES = [
    ("generate", "MODEL", "-p", "hello"),
    ("serve", "MODEL"),
    ("chat", "MODEL"),
    ("eval", "MODEL", "--tasks", "gsm8k"),
    ("draft", "train", "MODEL", "--out", "OUT", "--texts", "TEXT"),
    ("bundle", "make", "MODEL", "--out", "OUT"),
    ("bench", "decode", "MODEL", "--contenders", "plain", "--tasks", "continue", "--context", "64"),
    ("bench", "decode", "MODEL", "--contenders", "transformers", "--tasks", "continue", "--context", "64"),
    ("demo", "MODEL", "--no-picture", "--context", "4500"),
]


@pytest.mark.usefixtures("lm_eval_index")
@pytest.mark.parametrize("damage", [quantised_by_config, quantised_by_dtype])
@pytest.mark.parametrize("words", ENTRIES, ids=[" ".join(e[:2]) for e in ENTRIES])
def test_quantised_weights_are_refused_everywhere(
    run: Run, broken: Path, tmp_path: Path, words: tuple[str, ...], damage: Callable[[Path], None]
) -> None:
    damage(broken)
    (tmp_path / "text.txt").write_text("the quick brown fox " * 500)
    named = {"MODEL": broken, "OUT": tmp_path / "out", "TEXT": tmp_path / "text.txt"}
    result = run(*(named.get(word, word) for word in words))
    assert result.code == 4, result.err
    assert "quantised" in result.err
    assert "dequantise this one" in result.err
    assert not (tmp_path / "out").exists()

"""The folder of a GGUF file: tokenizer, template and end tokens from the header."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers import AutoTokenizer

from gguf_helpers import add_tokens, write_gguf
from justright.checkpoint.gguf_file import GgufFile
from justright.checkpoint.gguf_folder import gguf_folder, write_companions
from justright.checkpoint.gguf_tokenizer import tokenizer_of
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import CheckpointError, UnsupportedModelError
from tiny import CHAT_TEMPLATE, SPECIAL, tiny_tokenizer

TEXTS = (
    "The quick brown fox, it's 123 and 4.5!",
    "na\u00efve \u65e5\u672c\u8a9e \u043c\u0438\u0440 \U0001f642",
    "<|im_start|>user\n  hi <|im_end|>\n\n1",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_the_tokenizer_is_the_model_s(tmp_path: Path) -> None:
    """Written in llama.cpp's keys and read back: tokens, special tokens and template of the original."""
    found = load_tokenizer(
        gguf_folder(write_gguf(tmp_path / "m.gguf", tokens=lambda w: add_tokens(w, "gpt-2")))
    )
    expected = tiny_tokenizer()
    for text in TEXTS:
        assert found(text).input_ids == expected(text).input_ids
        assert found.decode(found(text).input_ids) == text
    assert found.get_vocab() == expected.get_vocab()
    assert found.special_tokens_map == expected.special_tokens_map
    assert found.chat_template == CHAT_TEMPLATE
    assert set(SPECIAL) <= {str(token) for token in found.added_tokens_decoder.values() if token.special}
    assert found.model_max_length == 512


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "tekken"])
def test_rules_of_splitting_are_transformers_s(pre: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tokens=lambda writer: add_tokens(writer, pre))
    ours, theirs = (
        load_tokenizer(gguf_folder(path)),
        AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name),
    )
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids


def test_qwen_composes_characters_as_the_original_does(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(GgufFile.open(write_gguf(tmp_path / "m.gguf")))
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [(True, False, [1, 3]), (True, True, [1, 3, 2]), (False, True, [3, 2]), (False, False, [3])],
)
def test_start_and_end_tokens(bos: bool, eos: bool, expected: list[int], tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        leave_out=("tokenizer.ggml.add_bos_token",),
        more=lambda writer: (writer.add_add_bos_token(bos), writer.add_add_eos_token(eos)),  # type: ignore[func-returns-value, arg-type, return-value]
    )
    assert tokenizer_of(GgufFile.open(path)).encode("<|im_start|>").ids == expected


@pytest.mark.parametrize(("family", "expected"), [("llama", 2), ("qwen2", [2, 4])])
def test_end_tokens_of_the_family(family: str, expected: object, tmp_path: Path) -> None:
    """The tiny vocabulary has Qwen's <|im_end|> as token 4."""
    folder = gguf_folder(write_gguf(tmp_path / "m.gguf", family))
    assert read(folder, "generation_config.json") == {
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": expected,
    }


def test_a_second_end_token_of_the_header(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", more=lambda writer: writer.add_eot_token_id(3))
    assert read(gguf_folder(path), "generation_config.json")["eos_token_id"] == [2, 3]


def test_an_unknown_rule_of_splitting_is_told_each_time(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tokens=lambda writer: add_tokens(writer, "future"))
    for _ in range(2):
        with pytest.warns(
            UserWarning, match="splits text by the rule 'future', which justright does not know"
        ):
            gguf_folder(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gguf_folder(write_gguf(tmp_path / "known.gguf"))


def broken(kind: str) -> Any:
    def write(writer: gguf.GGUFWriter) -> None:
        add_tokens(writer)
        for key, value in {
            "wordpiece": ("tokenizer.ggml.model", "bert"),
            "types": ("tokenizer.ggml.token_type", [1, 1]),
            "twice": ("tokenizer.ggml.tokens", ["a"] * 320),
            "few": ("tokenizer.ggml.tokens", ["a", "b", "c"]),
            "merges": ("tokenizer.ggml.merges", ["no such"]),
            "eos": ("tokenizer.ggml.eos_token_id", 320),
        }.items():
            if key == kind:
                writer.kv_data[0].pop(value[0])
                add = writer.add_array if isinstance(value[1], list) else writer.add_key_value
                if isinstance(value[1], list):
                    add(*value)
                else:
                    sort = (
                        gguf.GGUFValueType.STRING if isinstance(value[1], str) else gguf.GGUFValueType.UINT32
                    )
                    add(*value, sort)

    return write


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("wordpiece", UnsupportedModelError, "tokenizer of .* is 'bert'; allowed: 'gpt2' and 'llama'"),
        ("types", CheckpointError, "has 2 token types for 320 tokens"),
        ("twice", CheckpointError, "319 tokens of its vocabulary appear twice"),
        ("few", CheckpointError, "tokens: expected 320, found 3"),
        ("merges", CheckpointError, "its vocabulary and merges make no tokenizer"),
        ("eos", CheckpointError, "eos_token_id is 320; allowed: 0 to 319"),
    ],
)
def test_a_tokenizer_that_cannot_be(
    kind: str, error: type[Exception], message: str, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tokens=broken(kind))
    with pytest.raises(error, match=message):
        gguf_folder(path)
    assert [left.suffix for left in cache.iterdir()] == [".lock"]


def test_two_processes_make_one_folder(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    code = f"from justright.checkpoint.sources import resolve; print(resolve({str(path)!r}).path)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    made = {process.communicate()[0].strip() for process in processes}
    assert made == {str(gguf_folder(path))}
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 1


def test_a_link_that_leads_nowhere_is_made_again(tmp_path: Path) -> None:
    folder = gguf_folder(write_gguf(tmp_path / "m.gguf"))
    (folder / "m.gguf").unlink()
    (folder / "m.gguf").symlink_to(tmp_path / "gone.gguf")
    assert gguf_folder(tmp_path / "m.gguf") == folder
    assert (folder / "m.gguf").resolve() == tmp_path / "m.gguf"


def test_companions_go_anywhere(tmp_path: Path) -> None:
    write_companions(GgufFile.open(write_gguf(tmp_path / "m.gguf")), tmp_path)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in tmp_path.iterdir()
    }

"""Templates, end tokens and special tokens from every file that may hold them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from justright.checkpoint.mode_files import read_end_tokens, read_special_tokens, read_template
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import CheckpointError
from tiny import tiny_config, tiny_tokenizer

TEXT = "{{ messages[0]['content'] }} by {{ eos_token }}"


def write(file: Path, **content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("place", ["jinja", "tokenizer_config", "named", "processor"])
def test_a_template_is_found_wherever_it_lies(tmp_path: Path, place: str) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if place == "jinja":
        (tmp_path / "chat_template.jinja").write_text(TEXT)
    elif place == "processor":
        write(tmp_path / "chat_template.json", chat_template=TEXT)
    else:
        named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEXT}]
        write(tmp_path / "tokenizer_config.json", **config, chat_template=TEXT if place != "named" else named)
    assert read_template(tmp_path) == TEXT
    said = load_tokenizer(tmp_path).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert said == "a by </s>"


def test_no_template_is_none(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_end_tokens_are_those_at_which_transformers_stops(tmp_path: Path, family: str) -> None:
    tiny_config(family, eos_token_id=[7, 9]).save_pretrained(tmp_path)
    expected = GenerationConfig.from_model_config(AutoConfig.from_pretrained(tmp_path)).eos_token_id
    assert expected == [7, 9]
    assert read_end_tokens(tmp_path) == {7, 9}
    write(tmp_path / "generation_config.json", eos_token_id=4)
    assert read_end_tokens(tmp_path) == {4}


def test_end_tokens_of_a_nested_config(tmp_path: Path) -> None:
    write(tmp_path / "config.json", model_type="some", text_config={"eos_token_id": 11})
    assert read_end_tokens(tmp_path) == {11}
    write(tmp_path / "config.json", eos_token_id=None)
    assert read_end_tokens(tmp_path) == frozenset()
    write(tmp_path / "config.json", eos_token_id="</s>")
    with pytest.raises(CheckpointError, match="eos_token_id"):
        read_end_tokens(tmp_path)


def test_special_tokens_from_both_files(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer_config.json", eos_token={"content": "<a>", "lstrip": False}, bos_token="<b>")
    write(tmp_path / "special_tokens_map.json", bos_token="<c>")
    assert read_special_tokens(tmp_path) == {"eos_token": "<a>", "bos_token": "<c>"}
    shutil.rmtree(tmp_path)
    assert read_special_tokens(tmp_path) == {}

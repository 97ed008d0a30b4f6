"""``generation_config.json`` sets the defaults of sampling requests, separately for each mode."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bundle_helpers import thinking_pair
from engine_helpers import prompt_of
from justright.bundle.contents import check_contents
from justright.engine.chat_modes import Reasoning
from justright.engine.generation import FileSampling, GenerationDefaults
from justright.engine.llm import LLM
from justright.engine.sampler import SamplingParams
from justright.errors import CheckpointError, UsageError
from justright.reasoning.budget import ModePlan
from justright.reasoning.routing import Turn
from tiny import save_tiny

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
TALK = [{"role": "user", "content": "the quick fox"}]
OPENAI = SamplingParams(temperature=1.0)


def write(folder: Path, **values: Any) -> Path:
    file = folder / "generation_config.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(kept | values))
    return folder


@pytest.mark.parametrize(
    ("given", "otherwise", "expected"),
    [
        ({}, OPENAI, SamplingParams(0.7, 20, 0.8, 0.0, 1.05)),
        ({"temperature": 0.3}, OPENAI, SamplingParams(0.3, 20, 0.8, 0.0, 1.05)),
        ({"top_k": 0, "min_p": 0.1, "seed": 4}, OPENAI, SamplingParams(0.7, 0, 0.8, 0.1, 1.05, 4)),
        ({"repetition_penalty": 1.0}, OPENAI, SamplingParams(0.7, 20, 0.8, 0.0, 1.0)),
        ({"temperature": 0.0}, OPENAI, SamplingParams()),
        ({"temperature": 0.0, "repetition_penalty": 2.0}, OPENAI, SamplingParams(repetition_penalty=2.0)),
        ({}, SamplingParams(), SamplingParams()),
        ({"top_k": 3}, SamplingParams(), SamplingParams(top_k=3)),
        ({"temperature": 0.5}, SamplingParams(), SamplingParams(0.5, 20, 0.8, 0.0, 1.05)),
    ],
)
def test_given_values_override_the_file_one_by_one(
    given: dict[str, Any], otherwise: SamplingParams, expected: SamplingParams, tmp_path: Path
) -> None:
    file = FileSampling.read(write(tmp_path, **QWEN))
    found = GenerationDefaults(file, file).params(given, otherwise)
    assert found.slow == found.fast == expected


def test_what_the_engine_lacks_is_named(tmp_path: Path) -> None:
    neutral = {"num_beams": 1, "typical_p": 1.0, "bad_words_ids": [], "min_length": 0, "temperature": None}
    assert FileSampling.read(write(tmp_path, eos_token_id=2, **neutral)).line({}) is None
    found = FileSampling.read(write(tmp_path, top_k=5, no_repeat_ngram_size=3, typical_p=0.9, num_beams=4))
    assert found.lacking == {"no_repeat_ngram_size": 3, "typical_p": 0.9, "num_beams": 4}
    line = found.line({"top_k": 9})
    assert line is not None
    assert line.endswith(
        "json: none; not supported and ignored: typical_p 0.9, no_repeat_ngram_size 3, num_beams 4"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"temperature": "hot"}', "temperature"),
        ('{"temperature": NaN}', "temperature"),
        ('{"temperature": -1}', "temperature"),
        ('{"temperature": true}', "temperature"),
        ('{"repetition_penalty": 1' + "0" * 400 + "}", "generation_config"),
        ('{"top_k": 1.5}', "top_k"),
        ('{"top_p": 0}', "top_p"),
        ('{"min_p": [0.1]}', "min_p"),
    ],
)
def test_a_wrong_value_is_refused_by_name(text: str, name: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    (model / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"{name}.*--generation-config none"):
        LLM(str(model))
    assert LLM(str(model), generation_config="none").sampling(temperature=0.5).slow == SamplingParams(0.5)


def test_the_option_is_checked() -> None:
    with pytest.raises(UsageError, match="allowed: auto, none"):
        LLM("nowhere", generation_config="vllm")


def test_a_sampled_token_has_the_files_distribution(tmp_path: Path) -> None:
    """top_k 1 in the file leaves transformers' most likely token at every step, at any temperature."""
    model = write(save_tiny("llama", tmp_path / "model"), top_k=1, temperature=5)
    engine, prompt = LLM(str(model)), prompt_of(9)
    sampled = engine.generate_request(prompt, engine.sampling(temperature=2.0), max_tokens=6, ignore_eos=True)
    ids = torch.tensor([[*prompt, *sampled.token_ids]])
    theirs = AutoModelForCausalLM.from_pretrained(model)(ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
    assert sampled.token_ids == theirs.tolist()
    assert engine.with_draft("none").sampling(temperature=1.0).slow.top_k == 1
    assert engine.request(prompt).params == SamplingParams(), "greedy by default"
    assert engine.request(prompt, SamplingParams(0.5)).params == SamplingParams(0.5), "as it was given"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    slow, adapter = thinking_pair(
        tmp_path_factory.mktemp("pair"),
        "{{ messages[-1]['content'] }}<think>",
        "{{ messages[-1]['content'] }}>",
    )
    write(slow, temperature=0.6, top_k=7)
    write(adapter, temperature=0.9, top_p=0.5)
    return slow, adapter


SLOW, FAST = SamplingParams(0.6, 7), SamplingParams(0.9, top_p=0.5)


@pytest.mark.parametrize("bundled", [False, True])
def test_each_mode_has_its_own(bundled: bool, pair: tuple[Path, Path], tmp_path: Path) -> None:
    if bundled:
        check_contents(str(pair[0]), switch=str(pair[1]), defaults={}).write(tmp_path / "bundle")
        engine = LLM(str(tmp_path / "bundle"))
    else:
        engine = LLM(str(pair[0]), switch=str(pair[1]))
    params = engine.sampling(OPENAI, seed=3)
    for effort, expected in ((None, SLOW), ("low", SLOW), ("none", FAST), ("minimal", FAST)):
        request = engine.conversation(TALK, params, thinking=Reasoning(effort))
        assert request.params == replace(expected, seed=3)
    assert engine.request("the fox", engine.sampling(OPENAI)).params == SLOW
    request = engine.conversation(TALK, params, thinking=Reasoning("escalate", threshold=0.5))
    assert request.params.top_p == 0.5, "fast first"
    request.take(Turn([1], ModePlan()))
    assert request.params == SamplingParams(0.6, 7, seed=3), "then slow, with its own seed"


def test_an_adapter_without_the_file_leaves_it_to_the_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(pair[1], tmp_path / "adapter"))
    (adapter / "generation_config.json").unlink()
    engine = LLM(str(pair[0]), switch=str(adapter))
    assert engine.sampling(OPENAI).fast == SLOW


def test_a_bundles_defaults_go_before_the_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for number, (defaults, expected) in enumerate(
        [
            ({"temperature": 0.8}, SamplingParams(0.8, 7)),
            ({"temperature": 0.8, "top_k": 5}, SamplingParams(0.8, 5)),
            ({"top_k": 5}, SamplingParams(top_k=5)),  # still greedy
        ]
    ):
        out = tmp_path / str(number)
        check_contents(str(pair[0]), defaults=defaults).write(out)
        engine = LLM(str(out))
        assert engine.request("the fox").params == expected
        assert engine.request("the fox", engine.sampling(temperature=0.0)).params.greedy
        off = LLM(str(out), generation_config="none")
        assert off.request("the fox").params == SamplingParams(**defaults)

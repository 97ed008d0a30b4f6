"""The official client against a real vLLM, started by `justright serve --engine vllm`: one copy, then two."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import BadRequestError, OpenAI
from transformers import AutoModelForCausalLM

from client_suite import FAST, SUITE, Subject, chat, interleaved_prompts_are_never_mixed
from draft_helpers import network_for
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.checkpoint.fingerprint import weights_identity
from justright.engine.llm import LLM
from serve_helpers import MODEL
from tiny import SPECIAL, VOCAB_SIZE, save_pair, save_tiny, tiny_tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed: `make test-vllm` installs and runs it"
    ),
]
SLOW_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}|{% endfor %}{{ hint | default('') }}<think>"
)
FAST_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"


def post(served: Subject, **body: Any) -> httpx.Response:
    address = f"{served.address}/v1/chat/completions"
    return httpx.post(address, json={"messages": chat("Hi")} | body, timeout=60)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with special tokens for reasoning, and its switch."""
    folder = tmp_path_factory.mktemp("vllm")
    shape: dict[str, Any] = {"vocab_size": VOCAB_SIZE + 2, "head_dim": 32}
    shape |= {"use_sliding_window": False, "sliding_window": None}
    slow, fast = save_pair(folder, **shape)
    for path, template in ((slow, SLOW_TEMPLATE), (fast, FAST_TEMPLATE)):
        tokenizer = copy.deepcopy(tiny_tokenizer())
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.chat_template = template
        tokenizer.save_pretrained(path)
    return slow, extract(Pair(slow, fast), folder / "adapter", RankRule("energy", 1.0)).path


@contextlib.contextmanager
def vllm(parts: tuple[Path, Path | None], folder: Path, *options: str) -> Iterator[Subject]:
    """vLLM as the command line starts it; all its processes end with the fixture."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "justright", "serve", str(parts[0]), "--engine", "vllm", "--name", MODEL]
    command += ["--port", str(port), "--dtype", "float32", "--max-context", "256"]
    command += [] if parts[1] is None else ["--switch", str(parts[1])]
    command += ["--engine-arg=--enforce-eager", *options]
    environment = os.environ | {
        "JUSTRIGHT_CACHE": str(folder),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {"VLLM_NO_USAGE_STATS": "1"}
    log = folder / "vllm.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
    try:
        _wait(process, address, log)
        switch = None if parts[1] is None else str(parts[1])
        yield Subject(address, client, LLM(str(parts[0]), switch=switch), tuple(SPECIAL), vllm=True)
    finally:
        client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        time.sleep(1)
    raise AssertionError(f"vLLM did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def served(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with vllm(parts, tmp_path_factory.mktemp("served")) as found:
        yield found


@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
def test_the_suite_of_every_server(served: Subject, check: Callable[[Subject], None]) -> None:
    check(served)


def test_an_explicit_template_argument_comes_first(served: Subject) -> None:
    for wanted, effort in ((True, "none"), (False, "high")):
        answer = post(
            served, reasoning_effort=effort, chat_template_kwargs={"enable_thinking": wanted}, max_tokens=2
        )
        assert answer.headers["x-justright-mode"] == ("slow" if wanted else "fast")
        assert answer.json()["model"] == ("tiny" if wanted else "tiny-fast")
    answer = served.ask(extra_body={"chat_template_kwargs": {"hint": "!"}})
    assert served.said(answer) == served.expected("Hi", template={"hint": "!"})


def test_auto_follows_the_prompt(served: Subject) -> None:
    hard = "Why is 3 + 4 * 5 - 6 / 7 + 8 * 9 - 10 + 11 = 12 then?"
    modes = [
        post(served, messages=chat(question), reasoning_effort="auto", max_tokens=2).headers[
            "x-justright-mode"
        ]
        for question in ("Hi", hard)
    ]
    assert modes == ["fast", "slow"]


def test_models(served: Subject) -> None:
    cards = {card.id: card for card in served.client.models.list()}
    assert cards.keys() == {"tiny", "tiny-fast"}
    template = {"chat_template_kwargs": {"enable_thinking": False}}
    for more in ({}, template):
        answer = served.ask(model="tiny-fast", extra_body=more)
        assert served.said(answer) == served.expected("Hi", "none")
        assert answer.model == "tiny-fast"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reasoning_effort": "escalate"}, "embedded engine"),
        ({"model": "tiny-fast", "reasoning_effort": "high"}, "has one mode"),
    ],
)
def test_what_cannot_be_is_refused(served: Subject, options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequestError, match=told):
        served.ask(**options)


@pytest.fixture(scope="module")
def copies(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with vllm(parts, tmp_path_factory.mktemp("copies"), "--copies", "2") as found:
        yield found


def test_two_copies_share_the_requests(copies: Subject) -> None:
    interleaved_prompts_are_never_mixed(copies)
    figures = httpx.get(f"{copies.address}/metrics", timeout=30).text
    counts = re.findall(
        r'^vllm:generation_tokens_total\{.*engine="(\d)".*\} ([\d.e+]+)$', figures, re.MULTILINE
    )
    assert {engine for engine, count in counts if float(count) > 0} == {"0", "1"}


@pytest.fixture(scope="module")
def drafting(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = AutoModelForCausalLM.from_pretrained(parts[0])
    drafter = tmp_path_factory.mktemp("drafter")
    network_for(model).save(drafter, {"verifier": weights_identity(parts[0])}, dtype=torch.float32)
    options = ("--draft", "hybrid", "--draft-option", f"path={drafter}")
    with vllm(parts, tmp_path_factory.mktemp("drafting"), *options) as found:
        yield found


def test_drafts_change_not_one_token(drafting: Subject) -> None:
    interleaved_prompts_are_never_mixed(drafting)
    found = drafting.ask(**FAST, max_completion_tokens=60).metrics["speculative_decoding"]
    assert 0 <= found["num_accepted_draft_tokens"] <= found["num_draft_tokens"]
    figures = httpx.get(f"{drafting.address}/metrics", timeout=30).text
    for name in ("draft", "accepted"):
        found = re.findall(
            rf"^vllm:spec_decode_num_{name}_tokens_total\{{.*\}} ([\d.e+]+)$", figures, re.MULTILINE
        )
        assert sum(map(float, found)) > 0


def test_a_pruned_checkpoint_is_served_as_it_is(tmp_path: Path) -> None:
    model = save_tiny("qwen3_moe", tmp_path / "moe", head_dim=32)
    (texts := tmp_path / "texts.txt").write_text("the quick brown fox jumps over the lazy dog " * 300)
    out = tmp_path / "pruned"
    settings = ["--expert-sparsity", "0.5", "--sparsity", "0.6", "--calibration", str(texts)]
    small = ["--sequences", "4", "--length", "40", "--min-tokens", "2"]
    prune = [sys.executable, "-m", "justright", "prune", str(model), "-o", str(out), *settings, *small]
    subprocess.run(prune, check=True, capture_output=True)
    with vllm((out, None), tmp_path) as served:
        for prompt in ("the quick", "lazy dog", "fox jumps"):
            options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
            found = served.client.completions.create(model=MODEL, prompt=prompt, **options)
            assert found.choices[0].text == served.reference.generate_request(prompt, max_tokens=12).text


@pytest.mark.skipif(
    find_spec("arctic_inference") is None, reason="arctic-inference is not installed beside vLLM"
)
def test_vllms_own_suffix_drafts_change_not_one_token(
    parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with vllm(parts, tmp_path_factory.mktemp("suffix"), "--draft", "suffix") as served:
        interleaved_prompts_are_never_mixed(served)
        long = "the quick brown fox " * 12
        answer = served.ask(long, **FAST, max_completion_tokens=60)
        assert served.said(answer) == served.expected(long, "none", max_tokens=60)
        assert answer.metrics["speculative_decoding"]["num_draft_tokens"] > 0

"""The official client against a real vLLM, started by `justright serve --engine vllm`: one copy, then two."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from transformers import AutoModelForCausalLM

from draft_helpers import network_for
from justright.engine.api import Engine
from justright.engine.modes import Thinking
from justright.models.identity import weights_identity
from justright.switch.extract import extract
from justright.switch.pair import Pair
from justright.switch.ranks import RankRule
from tiny import SPECIAL, VOCAB_SIZE, save_pair, tiny_tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed: `make test-vllm` installs and runs it"
    ),
]
MODEL = "tiny"
SLOW_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}|{% endfor %}{{ hint | default('') }}<think>"
)
FAST_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"
QUESTIONS = ("Hi", "Name three rivers", "the quick brown fox", "abc def", "1 + 2", "lazy dog")


@dataclass
class Served:
    """A vLLM that runs, and the same model on our engine."""

    address: str
    engine: Engine
    log: Path

    @property
    def client(self) -> OpenAI:
        return _client(self.address)

    def ask(self, question: str = "Hi", **options: Any) -> Any:
        asked = {"model": MODEL, "messages": _chat(question), "temperature": 0, "max_completion_tokens": 16}
        return self.client.chat.completions.create(**(asked | options))

    def post(self, **body: Any) -> httpx.Response:
        return httpx.post(
            f"{self.address}/v1/chat/completions", json={"messages": _chat("Hi")} | body, timeout=60
        )

    def alone(self, question: str, effort: str | None = None, **options: Any) -> str:
        request = self.engine.conversation(
            _chat(question), thinking=Thinking(effort), max_tokens=16, **options
        )
        self.engine.generate_batch([request])
        return request.text


@cache
def _client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


def _chat(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def said(answer: Any) -> str:
    """Thought and answer."""
    message = answer.choices[0].message
    return readable((getattr(message, "reasoning", None) or "") + (message.content or ""))


def readable(text: str) -> str:
    """Without special tokens, which vLLM shows where it parses thoughts."""
    for token in SPECIAL:
        text = text.replace(token, "")
    return text


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that marks thoughts by tokens of their own, and its switch."""
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
def vllm(parts: tuple[Path, Path], folder: Path, *options: str) -> Iterator[Served]:
    """vLLM as the command line starts it; all its processes end with it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "justright", "serve", str(parts[0]), "--engine", "vllm", "--name", MODEL]
    command += ["--port", str(port), "--dtype", "float32", "--max-context", "256", "--switch", str(parts[1])]
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
    try:
        _wait(process, address, log)
        yield Served(address, Engine.load(str(parts[0]), switch=str(parts[1])), log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if _client.cache_info().currsize:
            _client(address).close()


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
def served(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with vllm(parts, tmp_path_factory.mktemp("served")) as found:
        yield found


def test_both_modes_are_our_engines_token_for_token(served: Served) -> None:
    for question in QUESTIONS:
        for effort in ("none", "xhigh"):
            answer = served.ask(question, reasoning_effort=effort)
            assert said(answer) == served.alone(question, effort if effort == "none" else None)
    assert served.ask(reasoning_effort="none").model == "tiny-fast"
    assert served.ask().model == "tiny"


def test_interleaved_prompts_are_never_mixed(served: Served) -> None:
    async def all_of_them() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=MODEL,
                        messages=_chat(question),
                        temperature=0,
                        max_completion_tokens=16,
                        reasoning_effort=effort,  # type: ignore[arg-type]
                    )
                    for _ in range(3)
                    for question in QUESTIONS
                    for effort in ("none", "xhigh")
                )
            )

    wanted = [served.alone(q, e) for _ in range(3) for q in QUESTIONS for e in ("none", None)]
    assert [said(answer) for answer in asyncio.run(all_of_them())] == wanted


def test_a_stream_is_the_same_answer(served: Served) -> None:
    for effort in ("none", "xhigh"):
        options: dict[str, Any] = {"reasoning_effort": effort, "stream": True}
        chunks = list(served.ask(**options, stream_options={"include_usage": True}))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        text = "".join((getattr(d, "reasoning", None) or "") + (d.content or "") for d in deltas)
        assert readable(text) == served.alone("Hi", None if effort == "xhigh" else effort)
        assert chunks[-1].usage.completion_tokens == 16


def test_an_explicit_template_argument_comes_first(served: Served) -> None:
    for wanted, effort in ((True, "none"), (False, "high")):
        answer = served.post(
            reasoning_effort=effort, chat_template_kwargs={"enable_thinking": wanted}, max_tokens=2
        )
        assert answer.headers["x-justright-mode"] == ("slow" if wanted else "fast")
        assert answer.json()["model"] == ("tiny" if wanted else "tiny-fast")
    answer = served.ask(extra_body={"chat_template_kwargs": {"hint": "!"}})
    assert said(answer) == served.alone("Hi", template={"hint": "!"})


def test_auto_follows_the_prompt(served: Served) -> None:
    hard = "Why is 3 + 4 * 5 - 6 / 7 + 8 * 9 - 10 + 11 = 12 then?"
    modes = [
        served.post(messages=_chat(question), reasoning_effort="auto", max_tokens=2).headers[
            "x-justright-mode"
        ]
        for question in ("Hi", hard)
    ]
    assert modes == ["fast", "slow"]


def test_thoughts_are_apart_and_end_with_their_budget(served: Served) -> None:
    thought = served.ask().choices[0].message
    assert thought.reasoning
    assert not thought.content
    ended = served.ask(max_completion_tokens=60, extra_body={"thinking_budget": 5}).choices[0].message
    assert ended.content
    assert len(ended.reasoning) < len(served.ask(max_completion_tokens=60).choices[0].message.reasoning)
    for effort in ("low", "medium", "high"):
        share = served.ask(reasoning_effort=effort)
        assert said(share) == served.alone("Hi", effort).replace("</think>", "")


def test_what_clients_ask(served: Served) -> None:
    fast: dict[str, Any] = {"reasoning_effort": "none"}
    whole = said(served.ask(**fast))
    assert said(served.ask(**fast, stop=[whole[4:6]])) == whole[: whole.index(whole[4:6])]
    assert len(served.ask(**fast, n=3, temperature=1, seed=1).choices) == 3
    warm: dict[str, Any] = fast | {"temperature": 1, "seed": 7}
    assert said(served.ask(**warm)) == said(served.ask(**warm))
    told = served.ask(**fast, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [len(one.top_logprobs) for one in told] == [3] * 16
    assert served.ask(**fast).usage.completion_tokens == 16
    text = served.client.completions.create(model=MODEL, prompt="the quick", max_tokens=8, temperature=0)
    assert text.choices[0].text == served.engine.generate("the quick", max_tokens=8).text


def test_json(served: Served) -> None:
    schema = {"name": "x", "schema": {"type": "string", "enum": ["left", "right"]}, "strict": True}
    answer = served.ask(
        reasoning_effort="none", response_format={"type": "json_schema", "json_schema": schema}
    )
    assert json.loads(answer.choices[0].message.content) in ("left", "right")


def test_models(served: Served) -> None:
    cards = {card.id: card for card in served.client.models.list()}
    assert cards.keys() == {"tiny", "tiny-fast"}
    template = {"chat_template_kwargs": {"enable_thinking": False}}
    assert said(served.ask(model="tiny-fast", extra_body=template)) == served.alone("Hi", "none")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reasoning_effort": "escalate"}, "embedded engine"),
        ({"reasoning_effort": "huge"}, "allowed: none"),
        ({"extra_body": {"justright": {"trace": True}}}, "embedded engine"),
        ({"max_completion_tokens": -1}, "max"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_what_cannot_be_is_refused(served: Served, options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequestError, match=told):
        served.ask(**options)


def test_other_faults(served: Served) -> None:
    with pytest.raises(NotFoundError):
        served.ask(model="other")
    headers = {"content-type": "application/json"}
    for content in (b"{", b"[]", b"\xff", b""):
        answer = httpx.post(
            f"{served.address}/v1/chat/completions", content=content, headers=headers, timeout=60
        )
        assert 400 <= answer.status_code < 500
    assert said(served.ask(reasoning_effort="none")) == served.alone("Hi", "none")


@pytest.fixture(scope="module")
def copies(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with vllm(parts, tmp_path_factory.mktemp("copies"), "--copies", "2") as found:
        yield found


def test_two_copies_share_the_requests(copies: Served) -> None:
    test_interleaved_prompts_are_never_mixed(copies)
    figures = httpx.get(f"{copies.address}/metrics", timeout=30).text
    counts = re.findall(
        r'^vllm:generation_tokens_total\{.*engine="(\d)".*\} ([\d.e+]+)$', figures, re.MULTILINE
    )
    assert {engine for engine, count in counts if float(count) > 0} == {"0", "1"}


@pytest.fixture(scope="module")
def drafting(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = AutoModelForCausalLM.from_pretrained(parts[0])
    drafter = tmp_path_factory.mktemp("drafter")
    network_for(model).save(drafter, {"verifier": weights_identity(parts[0])}, dtype=torch.float32)
    options = ("--draft", "hybrid", "--draft-option", f"path={drafter}")
    with vllm(parts, tmp_path_factory.mktemp("drafting"), *options) as found:
        yield found


def test_drafts_change_not_one_token(drafting: Served) -> None:
    test_interleaved_prompts_are_never_mixed(drafting)
    figures = httpx.get(f"{drafting.address}/metrics", timeout=30).text
    for name in ("draft", "accepted"):
        found = re.findall(
            rf"^vllm:spec_decode_num_{name}_tokens_total\{{.*\}} ([\d.e+]+)$", figures, re.MULTILINE
        )
        assert sum(map(float, found)) > 0

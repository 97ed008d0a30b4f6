"""Real servers on free ports, with tiny models, for clients of every kind."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file, save_file

from justright.engine.api import Engine
from justright.serve.app import Service
from justright.serve.run import HttpServer, address_of, bind
from justright.serve.scheduler import Scheduler
from justright.serve.settings import ServeSettings
from justright.switch.extract import extract
from justright.switch.pair import Pair
from justright.switch.ranks import RankRule
from tiny import save_tiny, tiny_tokenizer

MODEL = "tiny"
SLOW_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}|{% endfor %}{{ hint | default('') }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
)
FAST_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"


@dataclass
class Running:
    """A server that runs, and clients for it."""

    service: Service
    server: HttpServer
    address: str

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def scheduler(self) -> Scheduler:
        return self.service.scheduler

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60, **options)


@contextlib.contextmanager
def running(
    engine: Engine,
    settings: ServeSettings | None = None,
    *,
    max_waiting: int = 64,
    cache_tokens: int | None = None,
    drain_s: float = 5.0,
) -> Iterator[Running]:
    """A server in this process."""
    scheduler = Scheduler(engine, max_waiting=max_waiting, cache_tokens=cache_tokens)
    settings = settings or ServeSettings(MODEL)
    service = Service(engine, scheduler, settings)
    ready = threading.Event()
    bound = bind("127.0.0.1", 0)
    server = HttpServer(service, bound, drain_s=drain_s, on_ready=ready.set)
    scheduler.start()
    thread = threading.Thread(target=server.run_until_stopped, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield Running(service, server, address_of(bound))
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        service.close()
        bound.close()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("serve") / MODEL)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose template opens a thought, and the switch to another."""
    folder = tmp_path_factory.mktemp("pair")
    slow, fast = save_tiny("qwen3", folder / "slow"), save_tiny("qwen3", folder / "fast")
    tensors = load_file(slow / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and ".layers." in name:
            tensors[name] = tensor + torch.randn(tensor.shape, generator=generator) * 0.03
    save_file(tensors, slow / "model.safetensors", {"format": "pt"})
    for path, template in ((slow, SLOW_TEMPLATE), (fast, FAST_TEMPLATE)):
        tokenizer = copy.deepcopy(tiny_tokenizer())
        tokenizer.chat_template = template
        tokenizer.save_pretrained(path)
    return slow, extract(Pair(slow, fast), folder / "adapter", RankRule("energy", 1.0)).path


@pytest.fixture(scope="session")
def plain(tiny_path: Path) -> Iterator[Running]:
    """A server that no test changes: a model without thoughts, suffix drafts at every chance."""
    engine = Engine.load(str(tiny_path), slots=4, draft="suffix", adaptive=False, reuse_prefix=True)
    with running(engine) as found:
        yield found


@pytest.fixture(scope="session")
def thinking(pair: tuple[Path, Path]) -> Iterator[Running]:
    """A server that no test changes: a model that thinks, with its switch."""
    engine = Engine.load(str(pair[0]), slots=3, switch=str(pair[1]))
    with running(engine, replace(ServeSettings(MODEL), max_tokens=40)) as found:
        yield found

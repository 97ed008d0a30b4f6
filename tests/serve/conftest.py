"""Servers with tiny models, one per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle_helpers import thinking_pair
from justright.engine.llm import LLM
from justright.serve.server_settings import ServeSettings
from serve_helpers import MODEL, Running, running
from tiny import save_tiny

SLOW_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}|{% endfor %}{{ hint | default('') }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
)
FAST_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("serve") / MODEL)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose template opens the reasoning, and the switch to another model."""
    return thinking_pair(tmp_path_factory.mktemp("pair"), SLOW_TEMPLATE, FAST_TEMPLATE)


@pytest.fixture(scope="session")
def plain(tiny_path: Path) -> Iterator[Running]:
    """A shared server: a model without reasoning, suffix drafts whenever possible."""
    engine = LLM(str(tiny_path), slots=4, draft="suffix", adaptive=False, reuse_prefix=True)
    with running(engine, reference=LLM(str(tiny_path))) as found:
        yield found


@pytest.fixture(scope="session")
def thinking(pair: tuple[Path, Path]) -> Iterator[Running]:
    """A shared server: a reasoning model with its switch."""
    engine = LLM(str(pair[0]), slots=3, switch=str(pair[1]))
    reference = LLM(str(pair[0]), switch=str(pair[1]))
    with running(engine, ServeSettings(MODEL, max_tokens=40), reference=reference) as found:
        yield found

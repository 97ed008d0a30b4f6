"""Third-party drafters: the one in the documentation, and one with a single method."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from engine_helpers import prompt_of, reference, verifier_of
from justright.engine.decode_loop import DecodeLoop
from justright.engine.request import Request
from justright.speculative import registry
from justright.speculative.base import Draft, Drafter
from tiny import tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "drafters.md"


class Constant(Drafter):
    """Always guesses token 9; all its other methods are the defaults."""

    name = "constant"

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        return Draft([9], [-1], [0.5])


def documented() -> type[Drafter]:
    """The class in the last block of Python on the page."""
    code = PAGE.read_text(encoding="utf-8").rpartition("```python\n")[2].partition("```")[0]
    names: dict[str, type[Drafter]] = {}
    exec(code, names)
    return names["BigramDrafter"]


@pytest.mark.parametrize("kind", ["documented", "constant"])
def test_a_registered_drafter_decodes_losslessly(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_package")
    module.made = documented() if kind == "documented" else Constant  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", module)
    points = [EntryPoint("mine", "my_package:made", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points)
    prompt = prompt_of(12) * 2
    request = Request(prompt, max_tokens=16)
    list(DecodeLoop(verifier_of("llama"), drafter=registry.create_drafter("mine")).run([request]))
    assert request.token_ids == reference(tiny_model("llama"), prompt, 16)
    assert request.stats.drafted > 0

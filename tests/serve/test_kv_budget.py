"""The cache budget follows the machine's memory, and never exceeds what the slots can use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine_helpers import prompt_of, verifier_of
from justright.serve import kv_budget as memory


@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v3"])
def test_it_is_by_what_a_token_really_takes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = verifier_of(family, slots=2)
    for _ in verifier.prefill(0, prompt_of(8)):
        pass
    each = verifier.cache.nbytes // verifier.cache.capacities[0]
    monkeypatch.setattr(memory, "free_bytes", lambda device: each * 1000)
    assert memory.affordable_tokens(verifier) == 800


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("50\n")
    assert memory.free_bytes(torch.device("cpu")) > 2**20
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.free_bytes(torch.device("cpu")) == 950


def test_it_is_no_more_than_the_slots_hold() -> None:
    verifier = verifier_of("llama", slots=3, max_tokens=100)
    assert memory.affordable_tokens(verifier) == 300

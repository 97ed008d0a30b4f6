"""From an effort to a request: which template, which plan, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle_helpers import thinking_pair
from justright.engine.api import Engine
from justright.engine.modes import Thinking
from justright.errors import UsageError
from justright.switch.pair import Pair
from justright.switch.routing import Escalate
from justright.switch.scorers import Callback, Probe
from justright.switch.thinking import ModePlan
from tiny import save_tiny

MESSAGES = [{"role": "user", "content": "how many?"}]
SLOW_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}|{% endfor %}{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% else %}<think>{% endif %}"
)
FAST_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A slow model whose template opens a thought, and the switch to a fast one with a template of its own."""
    return thinking_pair(tmp_path_factory.mktemp("modes"), SLOW_TEMPLATE, FAST_TEMPLATE, family="llama")


@pytest.fixture(scope="module")
def engine(paths: tuple[Path, Path]) -> Engine:
    return Engine.load(str(paths[0]), switch=str(paths[1]))


def text(engine: Engine, thinking: Thinking, **options: int) -> str:
    request = engine.conversation(MESSAGES, thinking=thinking, **options)
    assert engine.tokenizer is not None
    return str(engine.tokenizer.decode(request.prompt_ids))


def test_the_template_switches_along(engine: Engine) -> None:
    assert text(engine, Thinking()) == "how many?|<think>"
    assert text(engine, Thinking("high")) == "how many?|<think>"
    for fast in (Thinking("none"), Thinking("minimal"), Thinking(factor=1.0)):
        assert text(engine, fast) == "how many?>"
    assert text(engine, Thinking(factor=0.5)) == "how many?|<think>"
    assert text(engine, Thinking(budget=0)) == "how many?|<think>\n</think>\n"
    assert text(engine, Thinking("escalate")) == "how many?>", "the fast attempt comes first"


def test_efforts_are_shares_of_the_answer(engine: Engine) -> None:
    for effort, budget in (("low", 40), ("medium", 100), ("high", 160)):
        plan = engine.conversation(MESSAGES, thinking=Thinking(effort), max_tokens=200).plan
        assert (plan.factor, plan.budget) == (0.0, budget)
    assert engine.conversation(MESSAGES, thinking=Thinking("low", budget=7), max_tokens=200).plan.budget == 7
    assert engine.conversation(MESSAGES, thinking=Thinking("none")).plan.factor == 1.0
    tags = engine.conversation(MESSAGES, thinking=Thinking(budget=5, closing="</think>So: ")).tags
    assert tags is not None
    assert tags.closing == "</think>So: "


def test_a_function_of_the_users_decides(engine: Engine) -> None:
    for score, mode in ((1.0, "slow"), (0.0, "fast")):
        mine = Callback(lambda prompt, _, s=score: s * (prompt == "how many?"))  # type: ignore[misc]
        request = engine.conversation(MESSAGES, thinking=Thinking("auto", scorer=mine), max_tokens=4)
        engine.generate_batch([request])
        decision = request.stats.decision
        assert decision is not None
        assert (decision.mode, decision.by) == (mode, "callback")


def test_a_probe_is_read_once(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(str(paths[0]), switch=str(paths[1]))
    none = torch.zeros(64)
    probe = Probe(none, 0.0, none, none + 1, 0.7, {"escalate": {"threshold": 0.25}})
    read: list[Path] = []

    def once(folder: Path, _: int) -> Probe:
        read.append(folder)
        return probe

    monkeypatch.setattr(Probe, "read", once)
    for effort in ("auto", "auto", "escalate"):
        request = engine.conversation(MESSAGES, thinking=Thinking(effort), max_tokens=4)
    assert len(read) == 1
    assert isinstance(request.route, Escalate)
    assert request.route.threshold == 0.25


def test_what_one_mode_ran_is_not_copied_into_another(paths: tuple[Path, Path]) -> None:
    engine = Engine.load(str(paths[0]), switch=str(paths[1]), slots=3, reuse_prefix=True)
    requests = [engine.request("how many of them?", max_tokens=12) for _ in range(3)]
    requests[1].plan = ModePlan(1.0)
    engine.generate_batch(requests)
    assert [r.stats.reused_tokens for r in requests] == [0, 0, len(requests[0].prompt_ids) - 1]
    assert requests[0].token_ids == requests[2].token_ids


def test_without_a_switch_the_template_may_leave_thinking_out(paths: tuple[Path, Path]) -> None:
    alone = Engine.load(str(paths[0]))
    assert text(alone, Thinking("none")) == "how many?|<think></think>"
    request = alone.conversation(MESSAGES, thinking=Thinking("none"))
    assert request.plan.factor == 0.0
    assert request.stats.decision is not None
    assert "template alone" in request.stats.decision.reason
    for thinking in (Thinking("auto"), Thinking("escalate"), Thinking(factor=0.5), Thinking(answer=1.0)):
        with pytest.raises(UsageError, match="switch"):
            alone.conversation(MESSAGES, thinking=thinking)
    with pytest.raises(UsageError, match="closing"):
        alone.conversation(MESSAGES, thinking=Thinking(budget=4, closing="no tag"))


def test_a_pair_is_told_what_does_not_switch(tmp_path: Path) -> None:
    slow, fast = save_tiny("llama", tmp_path / "slow"), save_tiny("llama", tmp_path / "fast")
    assert any("same chat template" in note for note in Pair(slow, fast).notes())
    (fast / "chat_template.jinja").unlink()
    from safetensors.torch import load_file, save_file

    tensors = load_file(fast / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 1.5
    save_file(tensors, fast / "model.safetensors", {"format": "pt"})
    notes = Pair(slow, fast).notes()
    assert "33%" in notes[0]
    assert "no chat template" in notes[1]

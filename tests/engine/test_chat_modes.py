"""From an effort to a request: the template, the plan, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle_helpers import thinking_pair, tokenizer_with
from justright.adapter.pair import Pair
from justright.engine.chat_modes import Reasoning, opens_reasoning
from justright.engine.llm import LLM
from justright.engine.request import Emission
from justright.errors import UsageError
from justright.reasoning.budget import ModePlan, ThinkingTags
from justright.reasoning.routing import Escalate
from justright.reasoning.scorers import Callback, Probe
from justright.serve.answer_chunks import Answer
from justright.serve.token_text import TokenTexts
from tiny import save_tiny

MESSAGES = [{"role": "user", "content": "how many?"}]
SLOW_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}|{% endfor %}{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% else %}<think>{% endif %}"
)
FAST_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A slow model whose template opens the reasoning, and the switch to a fast model with its own template."""
    return thinking_pair(tmp_path_factory.mktemp("modes"), SLOW_TEMPLATE, FAST_TEMPLATE, family="llama")


@pytest.fixture(scope="module")
def engine(paths: tuple[Path, Path]) -> LLM:
    return LLM(str(paths[0]), switch=str(paths[1]))


def text(engine: LLM, thinking: Reasoning, **options: int) -> str:
    request = engine.conversation(MESSAGES, thinking=thinking, **options)
    assert engine.tokenizer is not None
    return str(engine.tokenizer.decode(request.prompt_ids))


def test_the_template_switches_along(engine: LLM) -> None:
    assert text(engine, Reasoning()) == "how many?|<think>"
    assert text(engine, Reasoning("high")) == "how many?|<think>"
    for fast in (Reasoning("none"), Reasoning("minimal"), Reasoning(factor=1.0)):
        assert text(engine, fast) == "how many?>"
    assert text(engine, Reasoning(factor=0.5)) == "how many?|<think>"
    assert text(engine, Reasoning(budget=0)) == "how many?|<think>\n</think>\n"
    assert text(engine, Reasoning("escalate")) == "how many?>", "the fast attempt comes first"


CLOSED = "{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>\\n' }}"
TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}"
GENERATION = "{% if add_generation_prompt %}[assistant]TAIL{% endif %}"
TEMPLATES = {
    # The template's text after the last message, by hand.
    "opens": (f"{TURNS}{GENERATION.replace('TAIL', CLOSED)}", True),
    "opens nothing": (f"{TURNS}{GENERATION.replace('TAIL', '')}", False),
    "closes": (f"{TURNS}{GENERATION.replace('TAIL', '<think></think>')}", False),
    "always opens": (f"{TURNS}<think>", True),
    "writes nothing": (TURNS, False),
    "system last": ("{{ messages[-1]['content'] }}|{{ messages[0]['content'] }}|", False),
    "looks at the end": (
        TURNS
        + GENERATION.replace("TAIL", "{{ '<think>' if messages[-1]['content'].endswith('!') else '' }}"),
        None,
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "said", ["Hi!", "What is <think>?", "a </think> b <think>", "<think>!", "end-of-message <think>"]
)
def test_only_the_template_opens_reasoning(name: str, said: str) -> None:
    """This holds for any text of the user in any turn."""
    template, opens = TEMPLATES[name]
    opens = said.endswith("!") if opens is None else opens
    tokenizer = tokenizer_with(template)
    for before in ([], [{"role": "system", "content": said}], [{"role": "assistant", "content": said}]):
        messages = [*before, {"role": "user", "content": said}]
        assert opens_reasoning(tokenizer, ThinkingTags(), messages) is opens
        if name == "opens":
            assert not opens_reasoning(tokenizer, ThinkingTags(), messages, enable_thinking=False)


def test_a_users_tag_changes_no_answer(tmp_path: Path) -> None:
    """End to end: all output is content, and a budget injects nothing."""
    save_tiny("llama", tmp_path)
    tokenizer_with(FAST_TEMPLATE + "{# </think> #}").save_pretrained(tmp_path)
    engine = LLM(str(tmp_path))
    messages = [{"role": "user", "content": "What does the <think> tag mean? <think>"}]
    request = engine.conversation(messages, thinking=Reasoning(budget=3), max_tokens=12)
    plain = engine.request(request.prompt_ids, max_tokens=12)
    engine.generate_requests([request, plain])
    assert request.token_ids == plain.token_ids
    assert (request.stats.reasoning_tokens, request.stats.forced_tokens) == (0, 0)
    answer = Answer(request, TokenTexts(tokenizer_with(FAST_TEMPLATE)), apart=True)
    answer.take(Emission(request, request.token_ids, request.text, 0, "length"))
    assert (answer.reasoning, answer.content) == ("", plain.text)


def test_efforts_are_shares_of_the_answer(engine: LLM) -> None:
    for effort, budget in (("low", 40), ("medium", 100), ("high", 160)):
        plan = engine.conversation(MESSAGES, thinking=Reasoning(effort), max_tokens=200).plan
        assert (plan.factor, plan.budget) == (0.0, budget)
    assert engine.conversation(MESSAGES, thinking=Reasoning("low", budget=7), max_tokens=200).plan.budget == 7
    assert engine.conversation(MESSAGES, thinking=Reasoning("none")).plan.factor == 1.0
    tags = engine.conversation(MESSAGES, thinking=Reasoning(budget=5, closing="</think>So: ")).tags
    assert tags is not None
    assert tags.closing == "</think>So: "


def test_a_function_of_the_users_decides(engine: LLM) -> None:
    for score, mode in ((1.0, "slow"), (0.0, "fast")):
        mine = Callback(lambda prompt, _, s=score: s * (prompt == "how many?"))  # type: ignore[misc]
        request = engine.conversation(MESSAGES, thinking=Reasoning("auto", scorer=mine), max_tokens=4)
        engine.generate_requests([request])
        decision = request.stats.decision
        assert decision is not None
        assert (decision.mode, decision.by) == (mode, "callback")


def test_a_probe_is_read_once(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LLM(str(paths[0]), switch=str(paths[1]))
    none = torch.zeros(64)
    probe = Probe(none, 0.0, none, none + 1, 0.7, {"escalate": {"threshold": 0.25}})
    read: list[Path] = []

    def once(folder: Path, _: int) -> Probe:
        read.append(folder)
        return probe

    monkeypatch.setattr(Probe, "read", once)
    for effort in ("auto", "auto", "escalate"):
        request = engine.conversation(MESSAGES, thinking=Reasoning(effort), max_tokens=4)
    assert len(read) == 1
    assert isinstance(request.route, Escalate)
    assert request.route.threshold == 0.25


def test_what_one_mode_ran_is_not_copied_into_another(paths: tuple[Path, Path]) -> None:
    engine = LLM(str(paths[0]), switch=str(paths[1]), slots=3, reuse_prefix=True)
    requests = [engine.request("how many of them?", max_tokens=12) for _ in range(3)]
    requests[1].plan = ModePlan(1.0)
    engine.generate_requests(requests)
    assert [r.stats.reused_tokens for r in requests] == [0, 0, len(requests[0].prompt_ids) - 1]
    assert requests[0].token_ids == requests[2].token_ids


def test_without_a_switch_the_template_may_leave_thinking_out(paths: tuple[Path, Path]) -> None:
    alone = LLM(str(paths[0]))
    assert text(alone, Reasoning("none")) == "how many?|<think></think>"
    request = alone.conversation(MESSAGES, thinking=Reasoning("none"))
    assert request.plan.factor == 0.0
    assert request.stats.decision is not None
    assert "template only" in request.stats.decision.reason
    for thinking in (Reasoning("auto"), Reasoning("escalate"), Reasoning(factor=0.5)):
        with pytest.raises(UsageError, match="switch"):
            alone.conversation(MESSAGES, thinking=thinking)
    with pytest.raises(UsageError, match="closing"):
        alone.conversation(MESSAGES, thinking=Reasoning(budget=4, closing="no tag"))


def test_a_pair_warns_about_what_does_not_switch(tmp_path: Path) -> None:
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

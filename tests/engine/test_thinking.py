"""Thoughts in the loop: budgets, switching in mid-answer, and who decides; against a loop by hand, drafts or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine_helpers import ScriptedDrafter, prompt_of
from justright.draft.suffix import SuffixDrafter
from justright.engine.decode import DecodeLoop
from justright.engine.request import Request
from justright.engine.sampling import SamplingParams
from justright.engine.step import StepInput
from justright.engine.verifier import Verifier
from justright.switch.adapter import read_adapter
from justright.switch.apply import AppliedSwitch
from justright.switch.extract import extract
from justright.switch.pair import Pair
from justright.switch.ranks import RankRule
from justright.switch.routing import Auto, Escalate, Turn
from justright.switch.scorers import Callback
from justright.switch.thinking import ModePlan, ThinkingTags, closing_ids
from tiny import save_pair, save_tiny, tiny_tokenizer

TOKENS = 24
TOKENIZER = tiny_tokenizer()
TAGS = ThinkingTags()
OPENED = [*prompt_of(9), *TOKENIZER("<think>\n")["input_ids"]]


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    """A tiny model with the switch to another one, three slots."""
    folder = tmp_path_factory.mktemp("pair")
    slow, fast = save_pair(folder)
    adapter = extract(Pair(slow, fast), folder / "adapter", RankRule("energy", 1.0)).path
    verifier = Verifier.load(slow, slots=3)
    verifier.switch = AppliedSwitch(verifier.model, read_adapter(adapter))
    return verifier


def by_hand(
    verifier: Verifier,
    plan: ModePlan,
    tags: ThinkingTags,
    prompt: Sequence[int],
    count: int,
    *,
    opened: bool = True,
) -> list[int]:
    """One token at a time, each rule as its docstring says it, by looking at the whole text anew each time."""
    verifier.clear(0)
    prefill = plan.factor if plan.prefill is None else plan.prefill
    [*_, output] = verifier.prefill(0, prompt, prefill)
    assert output is not None
    logits, out = output.logits[-1], []
    closing = closing_ids(tags, TOKENIZER)
    thinking, factor, spent = opened, plan.factor, 0
    forced = closing.copy() if opened and plan.budget == 0 else []
    while len(out) < count:
        token = forced.pop(0) if forced else int(logits.argmax())
        out.append(token)
        before, thinking = thinking, in_reasoning(TOKENIZER.decode(out), tags, opened=opened)
        spent += before
        if before and not thinking and plan.answer is not None:
            factor = plan.answer
        if thinking and not forced and plan.budget is not None and spent >= plan.budget:
            forced = closing.copy()
        if len(out) == plan.switch_after:
            factor = plan.switch_to
        [step] = verifier.step([StepInput(0, [token], factor=factor)])
        verifier.keep(0, [0])
        logits = step.logits[0]
    verifier.clear(0)
    return out


def in_reasoning(text: str, tags: ThinkingTags, *, opened: bool) -> bool:
    """Whether a whole output ends in reasoning: blocks of it stand at the beginning, behind white space only."""
    block = f"(?s:.*?){re.escape(tags.close)}"
    begin = f"{block}" if opened else ""
    rest = re.match(f"{begin}(?:\\s*{re.escape(tags.open)}{block})*", text)
    if rest is None:
        return opened
    return re.match(f"\\s*{re.escape(tags.open)}", text[rest.end() :]) is not None


def run(verifier: Verifier, requests: Sequence[Request], drafter: Any = None) -> None:
    for _ in DecodeLoop(verifier, TOKENIZER, drafter=drafter).run(requests):
        pass


PLANS = {
    "slow": ModePlan(),
    "fast": ModePlan(1.0),
    "soft": ModePlan(0.5),
    "budget": ModePlan(budget=5),
    "budget of one": ModePlan(budget=1),
    "budget, then fast": ModePlan(budget=5, answer=1.0),
    "after tokens": ModePlan(switch_after=7),
    "after the first token": ModePlan(switch_after=1, switch_to=0.5),
    "prefill slow, decode fast": ModePlan(1.0, prefill=0.0),
    "everything": ModePlan(0.2, prefill=0.0, budget=4, answer=1.0, switch_after=15, switch_to=0.4),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_what_it_says(switched: Verifier, name: str) -> None:
    """By hand, alone, in a batch with other plans, and with drafts of every shape: the same tokens."""
    plan = PLANS[name]
    expected = by_hand(switched, plan, TAGS, OPENED, TOKENS)
    others = [ModePlan(), ModePlan(1.0, budget=3)]
    for drafter in (None, ScriptedDrafter({tuple(OPENED): expected}, seed=3)):
        request = Request(OPENED, max_tokens=TOKENS, plan=plan, tags=TAGS, opened=True)
        rest = [Request(OPENED, max_tokens=TOKENS, plan=other, tags=TAGS, opened=True) for other in others]
        run(switched, [request, *rest], drafter)
        assert request.token_ids == expected
        for other, one in zip(others, rest, strict=True):
            assert one.token_ids == by_hand(switched, other, TAGS, OPENED, TOKENS)
    stats = request.stats
    assert stats.reasoning_tokens + stats.answer_tokens == stats.output_tokens == TOKENS
    if plan.budget:
        close = len(closing_ids(TAGS, TOKENIZER)) - len(TOKENIZER("\n")["input_ids"])
        assert stats.reasoning_tokens == plan.budget + close
        assert stats.forced_tokens == len(closing_ids(TAGS, TOKENIZER))
        assert "</think>" in request.text
    if name == "fast":
        assert stats.fast_tokens == TOKENS


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plan_is_the_same_with_drafts(data: st.DataObject, switched: Verifier) -> None:
    factors = st.sampled_from([0.0, 0.5, 1.0])
    plan = ModePlan(
        data.draw(factors),
        data.draw(st.none() | factors),
        data.draw(st.none() | factors),
        data.draw(st.none() | st.integers(1, TOKENS)),
        data.draw(factors),
        data.draw(st.none() | st.integers(1, TOKENS)),
    )
    plain = by_hand(switched, plan, TAGS, OPENED, TOKENS)
    # The model's own words as the closing tag: thoughts then end by themselves, in the middle of drafts too.
    at = data.draw(st.integers(0, 10))
    word = TOKENIZER.decode(plain[at : at + 2])
    tags = TAGS if "\ufffd" in word or not word.strip() else ThinkingTags(close=word, closing=word)
    expected = by_hand(switched, plan, tags, OPENED, TOKENS)
    drafter = ScriptedDrafter({tuple(OPENED): expected}, seed=data.draw(st.integers(0, 99)))
    request = Request(OPENED, max_tokens=TOKENS, plan=plan, tags=tags, opened=True)
    run(switched, [request], drafter)
    assert request.token_ids == expected


def test_a_sampled_thought_is_the_same_with_drafts(switched: Verifier) -> None:
    """The generator moves on as in plain decoding, though a budget or a switch cuts drafts short."""
    params = SamplingParams(temperature=1.0, seed=7, repetition_penalty=1.2)
    plan = ModePlan(budget=6, answer=1.0)
    plain = Request(OPENED, params, max_tokens=TOKENS, plan=plan, tags=TAGS, opened=True)
    run(switched, [plain])
    drafted = Request(OPENED, params, max_tokens=TOKENS, plan=plan, tags=TAGS, opened=True)
    run(switched, [drafted], ScriptedDrafter({tuple(OPENED): plain.token_ids}, seed=1))
    assert drafted.token_ids == plain.token_ids


def turns(verifier: Verifier) -> tuple[Turn, list[int], list[int]]:
    """The slow turn, what it answers, and what the fast mode answers."""
    slow = Turn(prompt_of(14, seed=5), ModePlan())
    answer = by_hand(verifier, slow.plan, TAGS, slow.prompt_ids, TOKENS, opened=False)
    return slow, answer, by_hand(verifier, ModePlan(1.0), TAGS, OPENED, TOKENS)


def test_auto_takes_one_mode_and_says_why(switched: Verifier) -> None:
    slow, slow_answer, fast_answer = turns(switched)
    seen: list[tuple[str, Tensor]] = []

    def hard(prompt: str, hidden: Tensor) -> float:
        seen.append((prompt, hidden))
        return 0.7

    for threshold, expected, mode in ((0.5, slow_answer, "slow"), (0.9, fast_answer, "fast")):
        route = Auto(Callback(hard, threshold), "how?", slow)
        request = Request(OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), tags=TAGS, opened=True, route=route)
        run(
            switched,
            [request],
            ScriptedDrafter({tuple(OPENED): fast_answer, tuple(slow.prompt_ids): slow_answer}),
        )
        assert request.token_ids == expected
        decision = request.stats.decision
        assert decision is not None
        assert (decision.mode, decision.by, decision.score, decision.threshold) == (
            mode,
            "callback",
            0.7,
            threshold,
        )
        assert request.stats.to_dict()["decision"]["mode"] == mode
        assert request.stats.fast_tokens == (TOKENS if mode == "fast" else 0)
    assert [prompt for prompt, _ in seen] == ["how?", "how?"]
    assert seen[0][1].shape == (64,)


def test_escalate_thinks_only_when_it_must(switched: Verifier) -> None:
    """Cut or unsure: the slow answer, whole, and nothing of the fast one is shown; sure: the fast one."""
    slow, slow_answer, fast_answer = turns(switched)
    stop = frozenset({fast_answer[10]})
    cut = fast_answer[: fast_answer.index(fast_answer[10]) + 1]
    cases: list[tuple[float, frozenset[int], list[int]]] = [
        (0.0, stop, cut),
        (1.1, stop, slow_answer),
        (0.0, frozenset(), slow_answer),
    ]
    for threshold, stops, expected in cases:
        if expected is slow_answer and stops:
            at = [i for i, t in enumerate(slow_answer) if t in stops]
            expected = slow_answer[: at[0] + 1] if at else slow_answer
        request = Request(
            OPENED,
            max_tokens=TOKENS,
            plan=ModePlan(1.0),
            tags=TAGS,
            opened=True,
            stop_token_ids=stops,
            route=Escalate(threshold, slow),
        )
        shown = list(DecodeLoop(switched, TOKENIZER).run([request]))
        assert request.token_ids == expected
        assert [t for e in shown for t in e.token_ids] == expected
        assert "".join(e.text for e in shown) == request.text
        thought = expected is not cut
        decision = request.stats.decision
        assert decision is not None
        assert decision.mode == ("slow" if thought else "fast")
        assert request.stats.discarded_tokens == ((len(cut) if stops else TOKENS) if thought else 0)
        assert switched.cache.lengths == [0, 0, 0]


class Anything:
    """A constraint that allows all, and notes what it was told."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def mask(self, scores: Tensor) -> Tensor:
        return scores

    def take(self, token_id: int) -> None:
        self.taken.append(token_id)

    def begin(self) -> None:
        self.taken.clear()


def test_a_constraint_begins_anew_with_the_answer(switched: Verifier) -> None:
    plain = prompt_of(9)
    request = Request(
        plain,
        max_tokens=TOKENS,
        plan=ModePlan(1.0),
        route=Escalate(0.0, Turn(plain, ModePlan())),
        constraint=(constraint := Anything()),
    )
    list(DecodeLoop(switched, TOKENIZER).run([request]))
    assert request.stats.discarded_tokens == TOKENS
    assert constraint.taken == request.token_ids


def test_logprobs_say_what_was_thought(switched: Verifier) -> None:
    for escalates in (False, True):
        slow = Turn(OPENED, ModePlan(budget=5), opened=True)
        request = Request(
            OPENED, max_tokens=TOKENS, plan=ModePlan(budget=5), tags=TAGS, opened=True, top_logprobs=0
        )
        if escalates:
            request.plan, request.route = ModePlan(1.0), Escalate(0.0, slow)
        list(DecodeLoop(switched, TOKENIZER, drafter=SuffixDrafter()).run([request]))
        assert request.stats.forced_tokens
        thought = [one.thought for one in request.logprobs]
        assert sum(thought) == request.stats.reasoning_tokens < TOKENS
        assert thought == sorted(thought, reverse=True)


def test_an_escalated_request_among_others(switched: Verifier) -> None:
    slow, slow_answer, fast_answer = turns(switched)
    requests = [
        Request(
            OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), tags=TAGS, opened=True, route=Escalate(0.0, slow)
        )
        if i % 2
        else Request(OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), tags=TAGS, opened=True)
        for i in range(6)
    ]
    run(switched, requests)
    for i, request in enumerate(requests):
        assert request.token_ids == (slow_answer if i % 2 else fast_answer)


def test_a_cancelled_fast_attempt_shows_what_it_has(switched: Verifier) -> None:
    slow, _, fast_answer = turns(switched)
    request = Request(
        OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), tags=TAGS, opened=True, route=Escalate(0.0, slow)
    )
    shown = []
    for emission in DecodeLoop(switched, TOKENIZER).run([request]):
        shown.append(emission)
        if len(shown) == 5:
            request.cancel()
    assert request.finish_reason == "cancelled"
    assert shown[-1].token_ids == request.token_ids == fast_answer[: len(request.token_ids)]
    assert switched.cache.lengths == [0, 0, 0]


@pytest.mark.parametrize("left", [1, 2, 3, 4])
def test_a_closing_is_never_given_up(switched: Verifier, left: int) -> None:
    """However few tokens are left behind the budget, they are the closing's."""
    closing = closing_ids(TAGS, TOKENIZER)
    for drafter in (
        None,
        ScriptedDrafter({tuple(OPENED): by_hand(switched, ModePlan(budget=5), TAGS, OPENED, TOKENS)}),
    ):
        request = Request(OPENED, max_tokens=5 + left, plan=ModePlan(budget=5), tags=TAGS, opened=True)
        run(switched, [request], drafter)
        assert request.token_ids[5:] == closing[:left]


def test_a_static_cache_takes_forced_tokens_too(switched: Verifier, tmp_path: Path) -> None:
    verifier = Verifier.load(save_tiny("qwen3", tmp_path / "model"), slots=1, cache="static")
    expected = by_hand(verifier, ModePlan(budget=5), TAGS, OPENED, TOKENS)
    request = Request(OPENED, max_tokens=TOKENS, plan=ModePlan(budget=5), tags=TAGS, opened=True)
    run(verifier, [request], ScriptedDrafter({tuple(OPENED): expected}))
    assert request.token_ids == expected

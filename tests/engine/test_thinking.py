"""Reasoning in the decode loop: budgets, modes and routing, with and without drafts, against a simple loop."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine_helpers import ScriptedDrafter, prompt_of, reference
from justright.adapter.adapter import read_adapter
from justright.adapter.apply import AppliedSwitch
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.engine.decode_loop import DecodeLoop
from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.engine.step import StepInput
from justright.reasoning.budget import ModePlan, ThinkingTags, closing_ids
from justright.reasoning.routing import Auto, Escalate, RoutingDecision, Turn
from justright.reasoning.scorers import Callback
from justright.speculative.base import Draft
from justright.speculative.suffix import SuffixDrafter
from tiny import SPECIAL, save_pair, save_tiny, tiny_tokenizer

TOKENS = 24
TOKENIZER = tiny_tokenizer()
TAGS = ThinkingTags()
OPENED = [*prompt_of(9), *TOKENIZER("<think>\n")["input_ids"]]


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    """A tiny model with the switch to another one, with three slots."""
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
    """One token at a time, each rule as its docstring says it; computed once for each of its arguments."""
    return list(_by_hand(verifier, plan, tags, tuple(prompt), count, opened))


@cache
def _by_hand(
    verifier: Verifier, plan: ModePlan, tags: ThinkingTags, prompt: tuple[int, ...], count: int, opened: bool
) -> tuple[int, ...]:
    """`by_hand`, which looks at the whole text anew for every token."""
    verifier.clear(0)
    [*_, output] = verifier.prefill(0, prompt, plan.factor)
    assert output is not None
    logits, out = output.logits[-1], []
    closing = closing_ids(tags, TOKENIZER)
    thinking, spent = opened, 0
    forced = closing.copy() if opened and plan.budget == 0 else []
    while len(out) < count:
        token = forced.pop(0) if forced else int(logits.argmax())
        out.append(token)
        before, thinking = thinking, in_reasoning(TOKENIZER.decode(out), tags, opened=opened)
        spent += before
        if thinking and not forced and plan.budget is not None and spent >= plan.budget:
            forced = closing.copy()
        [step] = verifier.step([StepInput(0, [token], factor=plan.factor)])
        verifier.keep(0, [0])
        logits = step.logits[0]
    verifier.clear(0)
    return tuple(out)


def in_reasoning(text: str, tags: ThinkingTags, *, opened: bool) -> bool:
    """Whether a whole output ends in reasoning; reasoning blocks come first, after white space only."""
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
    "soft with a budget": ModePlan(0.2, budget=4),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_follows_its_definition(switched: Verifier, name: str) -> None:
    """The reference loop, a single request, a mixed batch and drafts of every shape give the same tokens."""
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
    assert stats.fast_tokens == (TOKENS if name in ("fast", "soft", "soft with a budget") else 0)


@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_plan_is_the_same_with_drafts(data: st.DataObject, switched: Verifier) -> None:
    plan = ModePlan(
        data.draw(st.sampled_from([0.0, 0.5, 1.0])), data.draw(st.none() | st.integers(1, TOKENS))
    )
    plain = by_hand(switched, plan, TAGS, OPENED, TOKENS)
    # The closing tag is text that the model emits itself, so reasoning also ends in the middle of drafts.
    at = data.draw(st.integers(0, 10))
    word = TOKENIZER.decode(plain[at : at + 2])
    # A tag is text or one special token; special tokens inside a tag are missing from the text, so it is never found.
    no_tag = "\ufffd" in word or not word.strip() or any(special in word for special in SPECIAL)
    tags = TAGS if no_tag else ThinkingTags(close=word, closing=word)
    expected = by_hand(switched, plan, tags, OPENED, TOKENS)
    drafter = ScriptedDrafter({tuple(OPENED): expected}, seed=data.draw(st.integers(0, 99)))
    request = Request(OPENED, max_tokens=TOKENS, plan=plan, tags=tags, opened=True)
    run(switched, [request], drafter)
    assert request.token_ids == expected


def test_a_sampled_thought_is_the_same_with_drafts(switched: Verifier) -> None:
    """The random generator advances as in plain decoding, although a budget shortens drafts."""
    params = SamplingParams(temperature=1.0, seed=7, repetition_penalty=1.2)
    plan = ModePlan(0.5, budget=6)
    plain = Request(OPENED, params, max_tokens=TOKENS, plan=plan, tags=TAGS, opened=True)
    run(switched, [plain])
    drafted = Request(OPENED, params, max_tokens=TOKENS, plan=plan, tags=TAGS, opened=True)
    run(switched, [drafted], ScriptedDrafter({tuple(OPENED): plain.token_ids}, seed=1))
    assert drafted.token_ids == plain.token_ids


def turns(verifier: Verifier) -> tuple[Turn, list[int], list[int]]:
    """The slow prompt, its answer, and the fast mode's answer."""
    slow = Turn(prompt_of(14, seed=5), ModePlan())
    answer = by_hand(verifier, slow.plan, TAGS, slow.prompt_ids, TOKENS, opened=False)
    return slow, answer, by_hand(verifier, ModePlan(1.0), TAGS, OPENED, TOKENS)


def test_auto_chooses_one_mode_and_gives_a_reason(switched: Verifier) -> None:
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
    """A cut or unsure fast attempt gives the whole slow answer and hides the attempt; a sure one is the answer."""
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
    """A constraint that allows all tokens, and records its calls."""

    failure = None
    complete = True

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
    """The closing text takes the tokens after the budget, however few are left."""
    closing = closing_ids(TAGS, TOKENIZER)
    for drafter in (
        None,
        ScriptedDrafter({tuple(OPENED): by_hand(switched, ModePlan(budget=5), TAGS, OPENED, TOKENS)}),
    ):
        request = Request(OPENED, max_tokens=5 + left, plan=ModePlan(budget=5), tags=TAGS, opened=True)
        run(switched, [request], drafter)
        assert request.token_ids[5:] == closing[:left]


def test_a_static_cache_takes_injected_tokens_too(switched: Verifier, tmp_path: Path) -> None:
    verifier = Verifier.load(save_tiny("qwen3", tmp_path / "model"), slots=1, cache="static")
    expected = by_hand(verifier, ModePlan(budget=5), TAGS, OPENED, TOKENS)
    request = Request(OPENED, max_tokens=TOKENS, plan=ModePlan(budget=5), tags=TAGS, opened=True)
    run(verifier, [request], ScriptedDrafter({tuple(OPENED): expected}))
    assert request.token_ids == expected


class Scripted:
    """A constraint that allows one token at a time, so that the output is known."""

    failure: str | None = None
    complete = True

    def __init__(self, text: str) -> None:
        self.left = list(TOKENIZER(text)["input_ids"])
        self.taken: list[int] = []

    def mask(self, scores: Tensor) -> Tensor:
        masked = scores.new_full(scores.shape, float("-inf"))
        masked[self.left[0]] = 0.0
        return masked

    def take(self, token_id: int) -> None:
        assert token_id == self.left.pop(0)
        self.taken.append(token_id)

    def begin(self) -> None:
        raise AssertionError("nothing is given up")


@pytest.mark.parametrize("text", ['{"a":"</think>"}', "<think>{}</think>{}", " <think>"])
def test_a_constraint_is_never_lifted_by_what_it_writes(switched: Verifier, text: str) -> None:
    """Tags in constrained output are content: nothing is injected, and no token is unconstrained."""
    for drafter in (None, SuffixDrafter()):
        constraint = Scripted(text)
        count = len(constraint.left)
        request = Request(
            OPENED,
            max_tokens=count,
            plan=ModePlan(budget=0),
            tags=TAGS,
            constraint=constraint,
            top_logprobs=0,
        )
        run(switched, [request], drafter)
        assert (request.text, request.token_ids) == (text, constraint.taken)
        assert (request.stats.reasoning_tokens, request.stats.forced_tokens) == (0, 0)
        assert not any(one.thought for one in request.logprobs)


def test_a_constraint_holds_from_the_templates_own_reasoning_on(switched: Verifier) -> None:
    text = '{"a":"</think> <think>"}'
    constraint = Scripted(text)
    closing = TOKENIZER("</think>")["input_ids"]
    request = Request(
        OPENED,
        max_tokens=4 + len(closing) + len(constraint.left),
        plan=ModePlan(budget=4),
        tags=ThinkingTags(closing="</think>"),
        opened=True,
        constraint=constraint,
    )
    run(switched, [request])
    assert request.text.partition("</think>")[2] == text
    assert request.stats.answer_tokens == len(constraint.taken)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_a_budget_holds_however_reasoning_is_opened(switched: Verifier, budget: int) -> None:
    """Reasoning by the template, by the model, and by the model after an injected close never exceeds the budget."""
    plan, close = ModePlan(budget=budget), "</x>"
    closing = list(TOKENIZER(close)["input_ids"])
    # The model's own first word as the opening tag.
    prompt, word = spoken(switched, [])
    tags = ThinkingTags(open=word, close=close, closing=close)
    words = by_hand(switched, ModePlan(), TAGS, prompt, TOKENS, opened=False)
    expected = by_hand(switched, plan, tags, prompt, TOKENS, opened=False)
    assert expected[: 1 + budget + len(closing)] == [*words[: 1 + budget], *closing]
    for drafter in (None, ScriptedDrafter({tuple(prompt): expected})):
        request = Request(prompt, max_tokens=TOKENS, plan=plan, tags=tags)
        run(switched, [request], drafter)
        assert request.token_ids == expected
    # The opening tag is the model's text after the injected close: it reopens, and is closed at once.
    prompt, again = spoken(switched, closing, budget)
    tags = ThinkingTags(open=again, close=close, closing=close)
    expected = by_hand(switched, plan, tags, prompt, TOKENS)
    for drafter in (None, ScriptedDrafter({tuple(prompt): expected})):
        request = Request(prompt, max_tokens=TOKENS, plan=plan, tags=tags, opened=True)
        run(switched, [request], drafter)
        assert request.token_ids == expected
        behind = request.token_ids[budget + len(closing) :]
        assert behind[: 1 + len(closing)] == [*TOKENIZER(again)["input_ids"], *closing]


def spoken(verifier: Verifier, closing: list[int], budget: int = 0) -> tuple[list[int], str]:
    """A prompt after which the model emits a word of letters: at once, or after ``budget`` tokens and a closing."""
    for seed in range(100):
        prompt = prompt_of(9, seed)
        said = by_hand(verifier, ModePlan(), TAGS, prompt, budget, opened=False) if budget else []
        [token] = by_hand(verifier, ModePlan(), TAGS, [*prompt, *said, *closing], 1, opened=False)
        word = TOKENIZER.decode([token])
        if word.isascii() and word.isalpha() and word not in TOKENIZER.decode(said):
            return prompt, word
    raise AssertionError("no prompt")


def test_a_stop_string_counts_in_content(switched: Verifier) -> None:
    plan = ModePlan(budget=8)
    tokens = by_hand(switched, plan, TAGS, OPENED, TOKENS)
    text = TOKENIZER.decode(tokens)
    reasoning, _, content = text.partition("</think>")
    in_both = next(letter for letter in content.lstrip() if letter in reasoning and letter.isalnum())
    for drafter in (None, ScriptedDrafter({tuple(OPENED): tokens})):
        made = []
        for everywhere in (False, True):
            request = Request(
                OPENED, max_tokens=TOKENS, plan=plan, tags=TAGS, opened=True, stop=(in_both,),
                stop_in_reasoning=everywhere,
            )  # fmt: skip
            shown = list(DecodeLoop(switched, TOKENIZER, drafter=drafter).run([request]))
            assert "".join(e.text for e in shown) == request.text
            assert (request.finish_reason, request.stopped_by) == ("stop", in_both)
            made.append(request.text)
        assert made[0] == f"{reasoning}</think>{content.partition(in_both)[0]}"
        assert made[1] == text.partition(in_both)[0]


class Certain(ScriptedDrafter):
    """Drafts the whole known continuation, including the end token and text after it."""

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        truth, done = self.state[request_id]
        coming = list(truth[done : done + max_nodes])
        return Draft(coming, list(range(-1, len(coming) - 1)), [1.0] * len(coming))


@pytest.mark.parametrize("end", ["token", "string", "length"])
def test_tokens_after_the_end_are_not_counted(tmp_path: Path, end: str) -> None:
    """The confidence of `escalate`, from transformers' own probabilities of the emitted tokens only."""
    path = save_tiny("llama", tmp_path / "model")
    verifier, model = Verifier.load(path, slots=1), AutoModelForCausalLM.from_pretrained(path)
    for seed in range(30):
        prompt = prompt_of(9, seed)
        truth = reference(model, prompt, TOKENS)
        logits = model(torch.tensor([[*prompt, *truth]])).logits[0, len(prompt) - 1 : -1]
        chances = logits.detach().softmax(-1)[range(len(truth)), truth]
        # The end comes right before the least likely token.
        ends = [
            n
            for n in range(4, TOKENS)
            if chances[n] < chances[:n].min() and truth[n - 1] not in truth[: n - 1]
        ]
        if ends and "\ufffd" not in TOKENIZER.decode(truth[: ends[0]]):
            count = ends[0]
            break
    wanted, behind = float(chances[:count].min()), float(chances[: count + 1].min())
    assert behind < wanted
    stops = frozenset({truth[count - 1]}) if end == "token" else frozenset()
    found = []
    for drafter in (None, Certain({tuple(prompt): truth})):
        constraint = Anything()
        request = Request(
            prompt,
            max_tokens=count if end == "length" else len(truth),
            stop=(TOKENIZER.decode(truth[:count]),) if end == "string" else (),
            stop_token_ids=stops,
            plan=ModePlan(),
            route=(watch := Watch()),
            constraint=constraint,
            top_logprobs=0,
        )
        list(DecodeLoop(verifier, TOKENIZER, drafter=drafter, max_draft=TOKENS).run([request]))
        assert request.token_ids == constraint.taken == truth[:count]
        assert [one.token_id for one in request.logprobs] == truth[:count]
        assert watch.seen == pytest.approx(wanted, rel=1e-4)
        found.append((request.stats.near_ties, request.finish_reason))
    assert found[0] == found[1]
    # With a draft as long as the answer, the last token is the model's; otherwise all but the first are guesses.
    assert request.stats.accepted == count - 1 - (end == "length")


@dataclass
class Watch:
    """A route that records the confidence."""

    seen: float = 0.0
    holds_output: bool = True

    def after_prefill(self, hidden: Tensor) -> tuple[RoutingDecision, None]:
        return RoutingDecision("fast", "test", None, None, ""), None

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[RoutingDecision, None]:
        self.seen = confidence
        return RoutingDecision("fast", "test", confidence, None, ""), None


def test_steps_are_each_attempts_own(switched: Verifier) -> None:
    """The result of the fast attempt's last step is kept during the slow attempt."""
    slow, slow_answer, fast_answer = turns(switched)
    truth = {tuple(OPENED): fast_answer, tuple(slow.prompt_ids): slow_answer}
    request = Request(OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), tags=TAGS, opened=True)
    alone = Request(OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), tags=TAGS, opened=True)
    request.route = Escalate(0.0, slow)
    for one in (request, alone):
        run(switched, [one], Certain(truth))
    fast_steps = len(alone.stats.steps)
    assert request.stats.steps[:fast_steps] == alone.stats.steps
    assert any(accepted for _, _, accepted in alone.stats.steps[-1:])
    assert request.stats.accepted == sum(accepted for *_, accepted in request.stats.steps)
    assert sum(request.stats.step_tokens) == 2 * (TOKENS - 1), "all but the first token of each attempt"
    at = fast_answer.index(fast_answer[10])
    ended = Request(
        OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), stop_token_ids=frozenset({fast_answer[10]})
    )
    run(switched, [ended], Certain(truth))
    assert (ended.stats.steps, ended.stats.step_tokens) == ([(1, TOKENS - 2, at)], [at]), "the end is a guess"


def test_a_finished_route_is_released(switched: Verifier) -> None:
    """If `auto` stays fast, no confidence is computed."""
    slow, _, fast_answer = turns(switched)
    route = Auto(Callback(lambda *_: 0.0, 0.5), "how?", slow)
    request = Request(OPENED, max_tokens=TOKENS, plan=ModePlan(1.0), tags=TAGS, opened=True, route=route)
    loop = DecodeLoop(switched, TOKENIZER)
    emissions = loop.run([request])
    next(emissions)
    next(emissions)
    [active] = loop.places.decoding
    assert (request.route, active.confidence) == (None, 1.0)
    list(emissions)
    assert request.token_ids == fast_answer


def test_injected_tokens_are_not_counted_as_accepted(switched: Verifier) -> None:
    """Plain decoding chooses one token per verification, whatever a budget injects."""
    request = Request(OPENED, max_tokens=TOKENS, plan=ModePlan(budget=3), tags=TAGS, opened=True)
    list(DecodeLoop(switched, TOKENIZER).run([request]))
    stats = request.stats
    assert stats.forced_tokens >= len(closing_ids(TAGS, TOKENIZER)) > 1
    assert stats.acceptance_length == 1.0
    assert stats.output_tokens == TOKENS

"""Draft selection: speculate as far as it pays, stop for bad drafts, resume for good ones."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine_helpers import ScriptedDrafter, prompt_of, reference, verifier_of
from justright.engine.decode_loop import DecodeLoop
from justright.engine.draft_selection import DraftRecord, choose, preferred
from justright.engine.request import Request
from justright.engine.step_cost import StepCost
from justright.speculative.base import EMPTY_DRAFT, Draft
from tiny import tiny_model

SIZES = (1, 2, 4, 8, 16, 32, 64)
FREE = StepCost(SIZES, (1.0,) * 7, (0.0, 0.0))  # a step costs the same for all sizes
STEEP = StepCost(SIZES, tuple(map(float, SIZES)), (0.0, 0.0))  # as many steps as tokens
HALF = StepCost(SIZES, tuple(1 + 0.5 * (n - 1) for n in SIZES), (0.0, 0.0))

NOTHING = Draft([], [], [])


def chain(*probs: float) -> Draft:
    return Draft(list(range(10, 10 + len(probs))), list(range(-1, len(probs) - 1)), list(probs))


def sure(reliability: float = 1.0) -> DraftRecord:
    return DraftRecord({("", size): reliability for size in range(8)})


def test_all_is_verified_where_it_costs_nothing() -> None:
    drafts = [chain(0.9, 0.5, 0.1), EMPTY_DRAFT, chain(0.2)]
    assert choose(drafts, [sure(), sure(), sure()], [5, 6, 7], FREE) == drafts


def test_nothing_is_verified_where_it_cannot_pay() -> None:
    drafts = [chain(1.0, 1.0, 1.0), chain(0.9)]
    assert choose(drafts, [sure(), sure()], [5, 6], STEEP) == [NOTHING, NOTHING]


def test_the_gain_must_be_worth_its_risk() -> None:
    assert choose([chain(0.04)], [sure()], [5], FREE) == [NOTHING]
    assert len(choose([chain(0.06)], [sure()], [5], FREE)[0]) == 1


def test_a_record_of_bad_drafts_switches_off() -> None:
    draft = chain(0.9, 0.8)
    assert choose([draft], [sure(1.0)], [5], HALF) == [draft]
    assert choose([draft], [sure(0.3)], [5], HALF) == [NOTHING]


def test_no_node_is_expected_to_be_accepted_more_than_surely() -> None:
    assert sure(1.5).expected(chain(1.0, 0.9, 0.2)).tolist() == pytest.approx([1.0, 2.0, 2.3])


@st.composite
def drafts_and_costs(draw: st.DrawFn) -> tuple[list[Draft], list[DraftRecord], StepCost]:
    drafts, records = [], []
    for _ in range(draw(st.integers(1, 3))):
        probs: list[float] = []
        for _ in range(draw(st.integers(0, 4))):
            probs.append(draw(st.floats(0, probs[-1] if probs else 1.0)))
        drafts.append(chain(*probs))
        records.append(sure(draw(st.floats(0.05, 1.0))))
    near = list(itertools.accumulate(draw(st.lists(st.floats(0.05, 2), min_size=7, max_size=7))))
    return drafts, records, StepCost(SIZES, tuple(near), (0.0, 0.0))


@given(drafts_and_costs())
def test_the_best_cut_by_trying_all(case: tuple[list[Draft], list[DraftRecord], StepCost]) -> None:
    """For chains with falling probabilities, the choice is the best of all combinations of prefixes."""
    drafts, records, cost = case
    batch = len(drafts)

    def rate(counts: tuple[int, ...]) -> float:
        gain = sum(
            float(record.expected(draft)[count - 1]) if count else 0.0
            for draft, record, count in zip(drafts, records, counts, strict=True)
        )
        return (batch + gain) / float(cost.curve(0, batch + sum(counts))[-1])

    chosen = choose(drafts, records, [0] * batch, cost)
    for draft, cut in zip(drafts, chosen, strict=True):
        assert cut == draft.first(len(cut)), "a cut keeps the first nodes"
    plain = rate((0,) * batch)
    best = max(rate(c) for c in itertools.product(*(range(len(d) + 1) for d in drafts)))
    got = rate(tuple(len(cut) for cut in chosen))
    assert got == pytest.approx(best if best >= 1.05 * plain else plain, rel=1e-9) or (
        best == pytest.approx(1.05 * plain)
    )


def test_of_two_drafts_the_one_that_pays_more() -> None:
    """The choice between a wide tree with more accepted tokens and one likely node depends on the cost of rows."""
    tree = Draft(range(10, 20), [-1] * 10, [0.3, *[0.1] * 9], source="tree")
    likely = replace(chain(0.9), source="chain")
    both = replace(tree, instead=likely)
    record = DraftRecord({("tree", 3): 1.0, ("chain", 0): 1.0})
    assert preferred(both, record, 5, FREE) is both
    assert preferred(both, record, 5, HALF) is likely
    assert preferred(tree, record, 5, HALF) is tree
    record.drafted(both, 0.5)
    assert preferred(both, record, 5, FREE) is likely, "the time to draft counts too"


def test_a_slow_drafter_that_always_loses_rests_although_another_is_verified() -> None:
    slow, quick = replace(chain(0.1, 0.1), source="slow"), replace(chain(0.9), source="quick")
    record = DraftRecord()
    record.drafted(slow, 0.1)
    for _ in range(3):
        assert not record.rests()
        record.set_aside(slow)
        record.verified(quick, 1, 1)
    assert record.rests()
    assert not record.rests()
    record.verified(slow, 2, 1)  # it wins once
    record.set_aside(slow)
    assert not record.rests(), "its patience is reset"


def test_a_batch_gives_its_places_to_the_likeliest() -> None:
    drafts = [chain(0.9, 0.85, 0.1), chain(0.3, 0.2), chain(0.95)]
    cost = StepCost(SIZES, (1.0, 1.0, 1.0, 1.8, 9.0, 9.0, 9.0), (0.0, 0.0))
    chosen = choose(drafts, [sure()] * 3, [0, 0, 0], cost)
    assert [len(d) for d in chosen] == [2, 0, 1]


def test_a_likely_node_after_an_unlikely_one_does_not_count_as_the_first() -> None:
    """Cutting keeps the first nodes, so a node is kept only with all nodes before it."""
    siblings = Draft([10, 11], [-1, -1], [0.2, 0.9])
    one_more = StepCost((1, 2, 3, 4), (1.0, 1.0, 1.0, 9.0), (0.0, 0.0))
    assert [len(d) for d in choose([siblings, chain(0.5)], [sure()] * 2, [0, 0], one_more)] == [0, 1]
    assert [len(d) for d in choose([siblings], [sure()], [0], one_more)] == [2]


def test_sampled_drafts_are_never_cut_by_what_was_drawn() -> None:
    """Dropping a sampled guess because it is unlikely would change the output distribution."""
    proposal = torch.full((3, 4), 0.25)
    sampled = Draft([1, 2], [-1, 0], [0.01, 0.001], proposal)
    chosen = choose([sampled, chain(0.9)], [sure(), sure(0.1)], [5, 5], STEEP)
    assert chosen[0] is sampled
    assert chosen[1] == NOTHING
    assert choose([sampled], [sure()], [5], STEEP) == [sampled]
    chosen = choose([chain(0.9), sampled], [sure(), sure()], [5, 5], FREE)
    assert [len(draft) for draft in chosen] == [1, 2]


def test_reliability_falls_with_bad_drafts_and_rises_with_good_ones() -> None:
    record = DraftRecord()
    draft = chain(0.9, 0.8, 0.7)
    start = record.expected(draft)[-1]
    for _ in range(10):
        record.verified(draft, 3, 0)
    low = record.expected(draft)[-1]
    assert low < 0.15 * start
    assert record.expected(chain(0.9))[-1] == pytest.approx(0.9 * 0.7), "other sizes have their own record"
    for _ in range(20):
        record.verified(draft, 3, 3)
    assert record.expected(draft)[-1] == pytest.approx(3, abs=0.2)


def test_a_cut_draft_teaches_about_drafts_as_they_are_proposed() -> None:
    record = DraftRecord()
    draft = chain(*[0.9] * 8)
    for _ in range(10):
        record.verified(draft, 2, 0)
    assert record.expected(draft)[-1] < 1


def test_drafts_set_aside_are_followed_along_what_is_emitted() -> None:
    record = sure(0.1)
    draft = chain(0.9, 0.8, 0.7)  # 10, 11, 12
    before = record.expected(draft)[-1]
    for _ in range(20):
        record.set_aside(draft)
        for token in (10, 11, 12):
            record.emitted([token])
    assert record.expected(draft)[-1] > 2.2, "drafts that were skipped recover at no cost"
    for _ in range(20):
        record.set_aside(draft)
        record.emitted([10, 99])
    assert before < record.expected(draft)[-1] < 1.2, "one of three was accepted"


def test_a_shadow_follows_a_tree() -> None:
    record = DraftRecord()
    tree = Draft([5, 6, 7, 8], [-1, -1, 1, 2], [0.5, 0.5, 0.25, 0.25])  # 6 -> 7 -> 8
    record.set_aside(tree)
    record.emitted([6, 7])
    assert record.reliability.get(("", 2), 0.7) == 0.7, "not over yet"
    record.emitted([8])
    assert record.reliability.get(("", 2), 0.7) == pytest.approx(0.8 * 0.7 + 0.2 * 2.0), (
        "three accepted of 1.5 expected"
    )


def test_few_shadows_at_once() -> None:
    record = DraftRecord()
    for _ in range(100):
        record.set_aside(chain(0.9, 0.9))
    assert len(record._shadows) == 4


class Torn(ScriptedDrafter):
    """Offers a wide tree that is wrong, and one right token instead."""

    def __init__(self, truth: dict[tuple[int, ...], Sequence[int]]) -> None:
        super().__init__(truth)
        self.sources: list[str] = []

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        truth, done = self.state[request_id]
        right = truth[done]
        wrong = Draft([(right + n) % 300 for n in range(1, 9)], [-1] * 8, [0.12] * 8, source="tree")
        return replace(wrong, instead=Draft([right], [-1], [0.9], source="one")).first(max_nodes)

    def verified(self, request_id: Hashable, draft: Draft, accepted: int) -> None:
        self.sources.append(draft.source)


def test_the_loop_takes_the_draft_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(9)
    truth = {tuple(prompt): reference(tiny_model("llama"), prompt, 60)}
    monkeypatch.setattr(StepCost, "observe", lambda *_: None)
    for cost, wanted in ((HALF, "one"), (None, "tree")):
        drafter = Torn(truth)
        request = Request(prompt, max_tokens=60)
        for _ in DecodeLoop(verifier_of("llama"), drafter=drafter, cost=cost).run([request]):
            pass
        assert request.token_ids == truth[tuple(prompt)]
        assert drafter.sources.count(wanted) > 20
        assert set(drafter.sources) == {wanted}


class WrongDrafter(ScriptedDrafter):
    """Proposes confident, wrong drafts until ``right`` is set."""

    right = False

    def propose(self, request_id: object, max_nodes: int) -> Draft:
        truth, done = self.state[request_id]
        coming = list(truth[done : done + min(max_nodes, 12)])
        if not self.right:
            coming = [(token + 1) % 300 for token in coming]
        return Draft(coming, list(range(-1, len(coming) - 1)), [0.9 * 0.7**i for i in range(len(coming))])


def test_a_request_switches_itself_off_and_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loop: after some bad drafts, each shorter, it decodes plainly; good drafts resume speculation."""
    prompt = prompt_of(9)
    truth = {tuple(prompt): reference(tiny_model("llama"), prompt, 120)}
    drafter = WrongDrafter(truth)
    cost = StepCost(SIZES, tuple(1 + 0.3 * (n - 1) for n in SIZES), (0.0, 0.0))
    monkeypatch.setattr(
        StepCost, "observe", lambda *_: None
    )  # the test does not depend on the machine's speed
    loop = DecodeLoop(verifier_of("llama"), drafter=drafter, cost=cost, max_draft=12)
    request = Request(prompt, max_tokens=120)
    for _ in loop.run([request]):
        if len(request.token_ids) == 60:
            drafter.right = True
    assert request.token_ids == truth[tuple(prompt)]
    steps = request.stats.steps
    assert 0 < steps[0][1] < 12, "cut, but recorded as proposed"
    first = next(i for i, (_, drafted, _) in enumerate(steps) if drafted == 0)
    assert first < 12
    assert all(drafted == 0 for at, drafted, _ in steps[first:] if at <= 60)
    assert sum(accepted for at, _, accepted in steps if at > 60) > 20


def test_one_interrupted_proposal_does_not_make_a_drafter_dear() -> None:
    """The median of the last seven proposals tolerates three outliers at any position."""
    for at in range(7):
        record = DraftRecord()
        for number in range(7):
            record.drafted(replace(chain(0.9), source="quick"), 1.0 if number == at else 0.001)
            if number > at or (number == at and number > 0):
                assert record.draft_s["quick"] == 0.001
    record = DraftRecord()
    for seconds in (0.001,) * 3 + (0.5,) * 4:
        record.drafted(replace(chain(0.9), source="slower"), seconds)
    assert record.draft_s["slower"] == 0.5, "a lasting slowdown is noticed"


class Clock:
    """A clock that advances only on request."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class RightDrafter(ScriptedDrafter):
    """Always right and instant, except that the first proposal takes a second and a prompt takes an hour."""

    def __init__(self, truth: dict[tuple[int, ...], Sequence[int]], clock: Clock) -> None:
        super().__init__(truth)
        self.clock, self.asked = clock, 0

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        super().start(request_id, prompt_ids)
        self.clock.now += 3600.0

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        self.asked += 1
        self.clock.now += 1.0 if self.asked == 1 else 0.0001
        truth, done = self.state[request_id]
        coming = list(truth[done : done + min(max_nodes, 7)])
        return Draft(coming, list(range(-1, len(coming) - 1)), [1.0] * len(coming), source=self.name)


def test_a_slow_first_proposal_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake clock, a step takes 1 ms per row plus 10 ms, so eight right tokens per step always pay."""
    clock, prompt, tokens = Clock(), prompt_of(12), 120
    monkeypatch.setattr("justright.engine.decode_loop.time", clock)
    truth = {tuple(prompt): reference(tiny_model("llama"), prompt, tokens)}
    cost = StepCost(SIZES, tuple(0.01 + 0.001 * n for n in SIZES), (0.0, 0.0))
    request = Request(prompt, max_tokens=tokens)
    list(DecodeLoop(verifier_of("llama"), drafter=RightDrafter(truth, clock), cost=cost).run([request]))
    assert request.token_ids == truth[tuple(prompt)]
    assert request.stats.acceptance_length > 6
    assert request.stats.prefill_s == pytest.approx(3600.0), "reading the prompt is prefill"
    assert request.stats.decode_s < 2.0

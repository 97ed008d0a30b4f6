"""Problems: right answers, the split by operations, levels, and the written solutions."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from justright_zoo import TASKS
from justright_zoo.measure import evaluation_problems
from justright_zoo.recipes.problems import (
    KINDS,
    LEVELS,
    Kind,
    Problem,
    direct,
    draw,
    overthought,
    parse_answer,
    worked,
)

problems = st.builds(
    lambda kind, level, seed, held_out: draw(kind, level, random.Random(seed), held_out=held_out),
    st.sampled_from(KINDS),
    st.sampled_from(LEVELS),
    st.integers(0, 10**9),
    st.booleans(),
)


def evaluated(sum_: str) -> int:
    """The value of ``a + b``, ``a - b`` or ``a * b``."""
    left, operation, right = sum_.split()
    return {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[operation]


@given(problems)
def test_steps_chain_up_to_the_answer(problem: Problem) -> None:
    for step, following in zip(problem.steps, problem.steps[1:], strict=False):
        assert step.after == following.before
    for step in problem.steps:
        assert evaluated(str(step).split(" = ")[0]) == step.after
        assert 1 <= step.after <= 99
    assert len(problem.steps) == problem.level


@given(problems)
def test_a_chain_question_means_its_answer(problem: Problem) -> None:
    numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
    if problem.kind == "chain":
        signs = re.findall(r"[+-]", problem.question)
        total = numbers[0] + sum(n if s == "+" else -n for s, n in zip(signs, numbers[1:], strict=True))
        assert total == problem.answer
    else:
        told = [step.operand for step in problem.steps if step.operation != "*"]
        assert numbers == [problem.steps[0].before, *told]


@given(problems, st.integers(0, 99))
def test_every_way_to_answer_ends_with_the_answer(problem: Problem, seed: int) -> None:
    thought = overthought(problem, random.Random(seed))
    for text in (direct(problem), worked(problem), thought):
        assert parse_answer(text) == problem.answer
    before, _, after = thought.partition("</think>\n")
    assert before.startswith("<think>\n")
    assert after == direct(problem)
    assert before.count("Start with") >= 3, "it repeats even easy steps"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_training_and_evaluation_share_no_problem(kind: Kind, level: int) -> None:
    rng = random.Random(0)
    trained = {draw(kind, level, rng, held_out=False).key for _ in range(3000)}
    evaluated_on = {problem.key for problem in evaluation_problems(kind, level, 200)}
    assert len(evaluated_on) == 200
    assert not trained & evaluated_on


def test_other_words_do_not_change_the_side() -> None:
    """Two wordings of one chain of operations have the same key, and so the same side of the split."""
    by_key: dict[str, set[str]] = {}
    rng = random.Random(1)
    for _ in range(4000):
        problem = draw("story", 1, rng, held_out=False)
        by_key.setdefault(problem.key, set()).add(problem.question)
    assert any(len(questions) > 1 for questions in by_key.values())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 12.", 12),
        ("The answer is 3. No. The answer is 4.", 4),
        ("The answer is ", None),
        ("12", None),
        ("The answer is twelve.", None),
        ("The answer is 7", 7),
        ("The answer is 15.5", None),
        ("The answer is 1/2.", None),
        ("The answer is 1,234", None),
    ],
)
def test_parse_answer(text: str, number: int | None) -> None:
    assert parse_answer(text) == number


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        ("The answer is 12.", "12", "12"),
        ("3 + 4 = 7, so 7", None, "7"),
        ("The answer is 15.5", None, None),
        ("The answer is 1/2 of 8.", None, "8"),
    ],
)
def test_the_filters_of_the_tasks_take_whole_numbers(
    text: str, strict: str | None, loose: str | None
) -> None:
    task = (TASKS / "_problems.yaml").read_text()
    patterns = [json.loads(quoted) for quoted in re.findall(r"regex_pattern: (.*)", task)]
    assert [next(iter(re.findall(pattern, text)[-1:]), None) for pattern in patterns] == [strict, loose]

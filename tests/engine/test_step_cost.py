"""The cost model of a step: measurement, updates, persistence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from justright.engine.step_cost import StepCost


def linear(tokens: int, past: int) -> float:
    """A simulated machine: 10 ms, 1 ms per token, and per cached token 1 us for the first token, 0.1 us for others."""
    return 0.01 + 0.001 * (tokens - 1) + past * (1e-6 + 1e-7 * (tokens - 1))


def test_a_linear_machine_is_measured_right() -> None:
    cost = StepCost.measure(linear, context=8192)
    for past in (64, 512, 8000):
        wanted = [linear(n, past) for n in range(1, 65)]
        assert cost.curve(past, 64).tolist() == pytest.approx(wanted, rel=1e-6)


def test_windows_cost_no_more_once_they_are_full() -> None:
    """Two of three layers have a window of 512 tokens, so costs below it do not predict longer contexts."""
    windows = (512, None, 512)

    def sliding(tokens: int, past: int) -> float:
        return linear(tokens, (2 * min(past, 512) + past) // 3)

    cost = StepCost.measure(sliding, context=40_000, windows=windows)
    for past in (64, 400, 8000, 32_000):
        wanted = [sliding(n, past) for n in range(1, 65)]
        assert cost.curve(past, 64).tolist() == pytest.approx(wanted, rel=1e-3)
    blind = StepCost.measure(sliding, context=40_000)
    assert blind.curve(32_000, 8)[-1] > 1.03 * sliding(8, 32_000)


def test_beyond_the_largest_size_it_costs_in_proportion() -> None:
    curve = StepCost((1, 2, 4), (1.0, 1.5, 2.0), (0.0, 0.0)).curve(0, 8)
    assert curve.tolist() == pytest.approx([1, 1.5, 1.75, 2, 2.5, 3, 3.5, 4])


@given(st.lists(st.floats(1e-4, 1), min_size=8, max_size=8))
def test_noise_never_makes_more_tokens_cheaper(noise: list[float]) -> None:
    """The estimate never falls with a step's size; otherwise every draft would pay."""
    cost = StepCost.measure(lambda n, past: noise[(n + past) % 8], context=4096)
    for past in (0, 64, 3000):
        assert np.all(np.diff(cost.curve(past, 80)) >= 0)
    assert cost.curve(3000, 1)[0] >= cost.curve(64, 1)[0]


@pytest.mark.parametrize("context", [1, 2, 3, 5, 16, 24, 40, 100, 130])
@pytest.mark.parametrize("largest", [0, 1, 6, 64])
def test_small_contexts_are_measured_within_themselves(context: int, largest: int) -> None:
    def time_step(tokens: int, past: int) -> float:
        assert tokens >= 1
        assert 0 <= past <= context - tokens
        return linear(tokens, past)

    cost = StepCost.measure(time_step, context=context, largest=largest)
    assert cost.sizes[0] == 1
    assert cost.sizes[-1] <= max(largest, 1)
    assert np.isfinite(cost.curve(context, 3)).all()


def test_noise_only_adds() -> None:
    calls = iter(range(1000))
    cost = StepCost.measure(lambda n, p: linear(n, p) + 5.0 * (next(calls) % 3 == 1), context=4096)
    assert cost.curve(64, 8)[-1] == pytest.approx(linear(8, 64), rel=1e-6)


def test_a_slow_machine_measures_few_sizes() -> None:
    steps = []

    def time_step(tokens: int, past: int) -> float:
        steps.append(tokens)
        return 200 * linear(tokens, past)

    cost = StepCost.measure(time_step, context=4096)
    assert cost.sizes == (1, 8)
    assert not cost.complete
    assert len(steps) == 5 * 4
    assert cost.curve(64, 8)[-1] == pytest.approx(200 * linear(8, 64), rel=1e-6)


def test_a_busy_while_makes_no_size_dearer_than_the_others() -> None:
    """The load affects all sizes, and each also has quiet rounds."""
    calls = iter(range(10_000))

    def time_step(tokens: int, past: int) -> float:
        return linear(tokens, past) * (1.5 if next(calls) // 15 % 2 else 1.0)  # 15 steps busy, 15 quiet

    curve = StepCost.measure(time_step, context=4096).curve(2000, 32)
    assert curve.tolist() == pytest.approx([linear(n, 2000) for n in range(1, 33)], rel=0.02)


def test_a_slow_beginning_does_not_count() -> None:
    """Loading a library or reading weights slows only the first steps."""
    calls = iter(range(10_000))
    cost = StepCost.measure(lambda n, past: linear(n, past) + 10.0 * (next(calls) < 4), context=4096)
    assert cost.complete


def test_a_further_token_never_adds_more_than_the_first() -> None:
    cost = StepCost.measure(lambda n, past: 0.01 + (past > 64) * (0.001 if n == 1 else 0.1 * n), context=4096)
    assert cost.slope_s[1] <= cost.slope_s[0]


def test_a_slower_machine_moves_the_whole_curve() -> None:
    """Sizes that did not run recently do not keep an outdated cost."""
    cost = StepCost.measure(linear, context=4096)
    for _ in range(120):
        cost.observe(1, 500, 3 * linear(1, 500))
    assert cost.curve(500, 1)[-1] == pytest.approx(3 * linear(1, 500), rel=0.05)
    assert cost.curve(500, 32)[-1] > 2 * linear(32, 500)


def test_one_size_bends_the_curve_there() -> None:
    cost = StepCost.measure(linear, context=4096)
    for _ in range(400):
        cost.observe(1, 500, linear(1, 500))
        cost.observe(8, 500, 3 * linear(8, 500))
    ratio = cost.curve(500, 8)[-1] / cost.curve(500, 1)[-1]
    assert ratio == pytest.approx(3 * linear(8, 500) / linear(1, 500), rel=0.2)


def test_more_tokens_never_cost_more_than_as_many_steps() -> None:
    cost = StepCost((1, 8), (0.01, 1.0), (0.0, 0.0))
    assert cost.curve(64, 8)[-1] == pytest.approx(0.08)


def test_one_strange_step_changes_little() -> None:
    cost = StepCost.measure(linear, context=4096)
    cost.observe(4, 64, 1000.0)
    assert cost.curve(64, 4)[-1] < 1.1 * linear(4, 64)


def test_saved_then_read(tmp_path: Path) -> None:
    cost = StepCost.measure(linear, context=4096)
    file = tmp_path / "new" / "cost.json"
    cost.save(file)
    cost.save(file)
    found = StepCost.read(file)
    assert found is not None
    assert (found.sizes, found.near_s, found.slope_s) == (cost.sizes, cost.near_s, cost.slope_s)
    assert [p.name for p in file.parent.iterdir()] == ["cost.json"], "nothing half-written is left"


GOOD = {"sizes": [1, 2], "near_s": [0.1, 0.2], "slope_s": [0.0, 0.0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '"text"',
        "\x00\x01",
        *(
            json.dumps(GOOD | change)
            for change in (
                {"sizes": []},
                {"sizes": [], "near_s": []},
                {"sizes": [2, 1]},
                {"sizes": [2, 4]},
                {"sizes": ["a", "b"]},
                {"sizes": None},
                {"near_s": [0.1]},
                {"near_s": [0.1, "x"]},
                {"near_s": [0.0, 0.2]},
                {"near_s": [-1.0, 0.2]},
                {"near_s": [0.1, float("nan")]},
                {"slope_s": [0.0]},
                {"slope_s": [0.0, float("inf")]},
                {"slope_s": [0.0, -1.0]},
            )
        ),
    ],
)
def test_what_is_no_cost_is_not_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    file.write_text(json.dumps(GOOD))
    assert StepCost.read(file) is not None
    file.write_text(text)
    assert StepCost.read(file) is None


def test_no_file_is_no_cost(tmp_path: Path) -> None:
    assert StepCost.read(tmp_path / "none.json") is None
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    assert StepCost.read(tmp_path / "bytes.json") is None

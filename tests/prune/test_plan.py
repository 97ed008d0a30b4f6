"""The plan as a file: round trips, errors for a plan that does not fit, and errors of the settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from justright.architectures.spec import ModelSpec
from justright.errors import CheckpointError, UsageError
from justright.prune.experts import KeptExperts
from justright.prune.plan import Plan, check_count
from justright.prune.settings import Settings
from tiny import tiny_config

CHOICE = KeptExperts((1, 3, 5), ((0, 1), (2, 3, 7), (4, 5, 6)))
SPEC = ModelSpec.of(tiny_config("olmoe"))
PLAN = Plan(
    "olmoe",
    4,
    8,
    dict.fromkeys(range(4), CHOICE),
    False,
    dict.fromkeys(range(4), 0.25),
    {"criterion": "stun"},
)


def test_it_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    assert Plan.read(tmp_path / "plan.json") == PLAN
    PLAN.check(SPEC)
    (tmp_path / "plan.json").write_text(
        "\ufeff" + PLAN.to_json(), encoding="utf-8"
    )  # some editors save it with a byte order mark
    assert Plan.read(tmp_path / "plan.json") == PLAN


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "mixtral"},
        {"num_layers": 3},
        {"num_experts": 6},
        {"sparsity": {0: 1.0}},
        {"sparsity": {9: 0.5}},
        {"sparsity": {0: 0.5, 1: 0.5, 2: 0.5}},
        {"experts": {0: CHOICE}},
        {"experts": dict.fromkeys(range(4), KeptExperts((3, 1, 5), CHOICE.clusters))},
        {"experts": dict.fromkeys(range(4), KeptExperts((1, 3, 8), CHOICE.clusters))},
        {"experts": dict.fromkeys(range(4), KeptExperts((1, 3, 5), ((0, 1), (2, 7), (4, 5, 6))))},
        {"experts": dict.fromkeys(range(3), CHOICE) | {3: KeptExperts((1, 3), ((1,), (3,)))}},
        {"experts": dict.fromkeys(range(4), KeptExperts((1,), ((1,),)))},
    ],
)
def test_a_plan_that_does_not_fit_the_model_raises(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(PLAN, **changes).check(SPEC)  # type: ignore[arg-type]


def test_each_routing_group_keeps_equally_many_experts() -> None:
    spec = ModelSpec.of(tiny_config("deepseek_v2"))
    uneven = KeptExperts((0, 1, 2, 4), ((0,), (1,), (2, 3), (4, 5)))
    layers = dict.fromkeys((1, 2, 3), uneven)
    with pytest.raises(UsageError, match="equally many experts of each of the 4 routing groups"):
        Plan("deepseek_v2", 4, 8, layers).check(spec)


def test_a_plan_may_leave_the_clusters_out(tmp_path: Path) -> None:
    data = json.loads(PLAN.to_json())
    data["experts"]["2"] = {"kept": [0, 4, 6]}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    found = Plan.read(tmp_path / "plan.json")
    found.check(SPEC)
    assert found.experts[2] == KeptExperts((0, 4, 6), ((0,), (4,), (6,)))
    data["experts"]["2"] = {"keep": [0, 4, 6]}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="unknown keys keep; allowed: kept"):
        Plan.read(tmp_path / "plan.json")


def test_an_uneven_plan_must_set_uneven() -> None:
    experts = dict.fromkeys(range(3), CHOICE) | {3: KeptExperts((1, 3), ((1,), (3,)))}
    with pytest.raises(UsageError, match='set "uneven": true'):
        replace(PLAN, experts=experts).check(SPEC)
    replace(PLAN, experts=experts, uneven=True).check(SPEC)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9}', '{"format": 1}'])
def test_a_file_that_is_not_a_plan_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a pruning plan"):
        Plan.read(tmp_path / "plan.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Plan.read(tmp_path / "none.json")


def test_routing_sets_the_least_number() -> None:
    check_count(SPEC, 2)
    with pytest.raises(UsageError, match="at least 2"):
        check_count(SPEC, 1)
    grouped = ModelSpec.of(tiny_config("deepseek_v3"))
    with pytest.raises(UsageError, match="multiple of 4"):
        check_count(grouped, 6)
    with pytest.raises(UsageError, match="at least 8"):
        check_count(grouped, 4)  # a group is scored by its two best experts


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"expert_sparsity": 1.5},
        {"criterion": "best"},
        {"weights": "luck"},
        {"ratios": "some"},
        {"pattern": "4:2"},
        {"pattern": "2-4"},
        {"pattern": "2:4", "ratios": "outlier_weighed"},
        {"parts": ()},
        {"uneven": True, "criterion": "reap"},
        {"router_weight": float("nan")},
        {"coactivation_weight": -1.0},
        {"router_weight": 0.0, "coactivation_weight": 0.0},
        {"weights": "none", "pattern": "2:4"},
        {"weights": "none", "ratios": "outlier_weighed"},
        {"parts": ("router",)},
    ],
)
def test_settings_refuse_what_is_not_allowed(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings(**changes)  # type: ignore[arg-type]

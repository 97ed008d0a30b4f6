"""Numbers of experts in a config: one for all layers, or one per layer."""

from __future__ import annotations

from typing import Any

import pytest

from justright.architectures.derive import EXPERTS_BY_LAYER
from justright.architectures.spec import ModelSpec
from justright.architectures.uneven_experts import with_experts
from justright.errors import CheckpointError
from tiny import tiny_config

CONFIG = tiny_config("deepseek_v3").to_dict()  # 4 layers, the first without experts


def test_every_key_that_counts_experts_is_changed() -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 8, "num_local_experts": 8, "hidden_size": 8}
    found = with_experts(config, ModelSpec.of(config), {0: 4, 1: 4})
    assert found == config | {"num_experts": 4, "num_local_experts": 4}
    nested: dict[str, Any] = {"model_type": "llama4", "text_config": {"num_local_experts": 16}}
    assert with_experts(nested, ModelSpec.of(nested), {0: 4})["text_config"] == {"num_local_experts": 4}
    assert nested["text_config"] == {"num_local_experts": 16}, "the original is unchanged"


def test_by_layer_and_back() -> None:
    assert ModelSpec.of(CONFIG).experts == (0, 8, 8, 8)
    assert not ModelSpec.of(CONFIG).is_uneven
    uneven = with_experts(CONFIG, ModelSpec.of(CONFIG), {1: 4, 2: 6, 3: 5})
    assert uneven["n_routed_experts"] == 6
    assert uneven[EXPERTS_BY_LAYER] == [0, 4, 6, 5]
    assert ModelSpec.of(uneven).is_uneven
    assert ModelSpec.of(uneven).experts == (0, 4, 6, 5)
    even = with_experts(uneven, ModelSpec.of(uneven), {1: 4, 2: 4, 3: 4})
    assert EXPERTS_BY_LAYER not in even
    assert ModelSpec.of(even).experts == (0, 4, 4, 4)


@pytest.mark.parametrize("wrong", [[0, 4, 6], [1, 4, 6, 5], [0, 0, 6, 5], [0, 4, 9, 5], "4", [0, 4.0, 6, 5]])
def test_a_list_that_does_not_fit_is_refused(wrong: Any) -> None:
    with pytest.raises(CheckpointError, match="allowed: 4 numbers, 1 to 8"):
        ModelSpec.of(CONFIG | {EXPERTS_BY_LAYER: wrong})

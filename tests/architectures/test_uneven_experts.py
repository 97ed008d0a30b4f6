"""Numbers of experts in a config: one for all layers, or one per layer."""

from __future__ import annotations

from typing import Any

import pytest

from justright.architectures.uneven_experts import KEY, experts_by_layer, is_uneven, with_experts
from justright.errors import CheckpointError
from tiny import tiny_config

CONFIG = tiny_config("deepseek_v3").to_dict()  # 4 layers, the first without experts


def test_every_key_that_counts_experts_is_changed() -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 8, "num_local_experts": 8, "hidden_size": 8}
    assert with_experts(config, {0: 4, 1: 4}) == config | {"num_experts": 4, "num_local_experts": 4}
    nested: dict[str, Any] = {"model_type": "llama4", "text_config": {"num_local_experts": 16}}
    assert with_experts(nested, {0: 4})["text_config"] == {"num_local_experts": 4}
    assert nested["text_config"] == {"num_local_experts": 16}, "the original is left alone"


def test_by_layer_and_back() -> None:
    assert experts_by_layer(CONFIG) == {1: 8, 2: 8, 3: 8}
    assert not is_uneven(CONFIG)
    uneven = with_experts(CONFIG, {1: 4, 2: 6, 3: 5})
    assert uneven["n_routed_experts"] == 6
    assert uneven[KEY] == [0, 4, 6, 5]
    assert is_uneven(uneven)
    assert experts_by_layer(uneven) == {1: 4, 2: 6, 3: 5}
    even = with_experts(uneven, {1: 4, 2: 4, 3: 4})
    assert KEY not in even
    assert experts_by_layer(even) == {1: 4, 2: 4, 3: 4}


@pytest.mark.parametrize("wrong", [[0, 4, 6], [1, 4, 6, 5], [0, 0, 6, 5], [0, 4, 9, 5], "4", [0, 4.0, 6, 5]])
def test_a_list_that_does_not_fit_is_refused(wrong: Any) -> None:
    with pytest.raises(CheckpointError, match="allowed: 4 numbers, 1 to 8"):
        experts_by_layer(CONFIG | {KEY: wrong})

"""The architecture table against transformers' stock classes, in memory, on disk and in forward passes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.masking_utils import eager_mask

import tiny
from justright.architectures.spec import ModelSpec, architecture_of, supported_families
from justright.architectures.table import FAMILIES, RECURRENT
from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError, UnsupportedModelError
from justright.model.decoder_layer import LayerFormat

ARCTIC = {
    "model_type": "arctic",
    "hidden_size": 64,
    "vocab_size": 320,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_local_experts": 128,
    "num_experts_per_tok": 2,
    "moe_layer_frequency": 2,
    "max_position_embeddings": 4096,
}
IDS = torch.arange(3, 23)[None]


def is_vision(name: str) -> bool:
    return "vision_tower" in name or "multi_modal_projector" in name


@pytest.mark.parametrize("family", tiny.ALL)
def test_every_parameter_in_memory_has_a_part(family: str) -> None:
    model = tiny.tiny_model(family)
    spec = ModelSpec.of(model.config)
    row = spec.architecture
    parts = Counter(spec.part(name) for name in model.state_dict(keep_vars=True) if not is_vision(name))
    assert parts["other"] == 0
    expected = {"embedding", "attention", "mlp", "norm", "head"}
    if row.moe is not None:
        expected |= {"experts", "router"} | ({"shared_experts"} if row.moe.shared else set())
        if len(spec.moe_layers) == tiny.LAYERS:
            expected -= {"mlp"}
    assert set(parts) - {"other"} == expected


@pytest.mark.parametrize("family", tiny.ALL)
def test_linear_modules_are_all_the_linears_of_the_decoder(family: str) -> None:
    model = tiny.tiny_model(family)
    spec = ModelSpec.of(model.config)
    row = spec.architecture
    listed = {m.name: m for m in spec.linears}
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not is_vision(name)
        and row.part(name + ".weight") not in ("head", "router")
    }
    assert set(listed) == found
    for name, module in listed.items():
        assert row.part(name + ".weight") == module.part
        assert name.startswith(row.memory.layer(module.layer) + ".")


@pytest.mark.parametrize("family", tiny.ALL)
def test_fused_groups_receive_the_same_input_object(family: str) -> None:
    model = tiny.tiny_model(family)
    groups = ModelSpec.of(model.config).fused_groups
    assert bool(groups) == (family != "phi3")
    seen: dict[str, torch.Tensor] = {}  # kept alive, so that an id cannot be reused
    for name in {name for group in groups for name in group}:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: seen.__setitem__(name, args[0])
        )
    with torch.no_grad():
        model(IDS, use_cache=False)
    for group in groups:
        assert len({id(seen[name]) for name in group}) == 1, group


@pytest.mark.parametrize("family", tiny.ALL)
def test_names_and_counts_on_disk(family: str, tmp_path: Path) -> None:
    path = tiny.save_tiny(family, tmp_path / family)
    raw = json.loads((path / "config.json").read_text())
    spec = ModelSpec.of(raw)
    row = spec.architecture
    with safe_open(path / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    text = {name for name in shapes if not is_vision(name)}
    assert all(spec.part(name) != "other" for name in text)
    expected = {row.disk.embedding, row.disk.final_norm + ".weight"}
    expected |= {
        row.disk.layer(m.layer) + m.name.removeprefix(row.memory.layer(m.layer)) + ".weight"
        for m in spec.linears
    }
    if row.moe is not None:
        experts = spec.num_experts
        names = row.moe.disk.matrices + row.moe.disk.biases
        for layer in spec.moe_layers:
            prefix = row.disk.layer(layer)
            expected |= {f"{prefix}.{n}".replace("{e}", str(e)) for n in names for e in range(experts)}
            expected |= {f"{prefix}.{n}" for n in row.moe.router_disk.names}
            assert shapes[f"{prefix}.{row.moe.router_disk.weight}"][0] == experts
        part_of = {name: row.part(name) for name in text}
        assert {n for n in text if part_of[n] in ("experts", "router")} <= expected
        counts = {key: raw[key] for key in row.moe.count_keys if key in raw}
        assert counts
        assert set(counts.values()) == {experts}
    assert expected <= text
    assert spec == ModelSpec.of(tiny.tiny_config(family)), "a file and an object give the same spec"
    with pytest.raises(FrozenInstanceError):
        spec.num_layers = 1  # type: ignore[misc]


@pytest.mark.parametrize("family", tiny.ALL)
def test_twelve_layers_of_twelve_experts_are_read_as_transformers_loads_them(
    family: str, tmp_path: Path
) -> None:
    model = tiny.tiny_model(family, **tiny.twelve(family))
    model.save_pretrained(tmp_path)
    memory = model.state_dict()
    with Checkpoint.open(tmp_path) as checkpoint:
        layers = LayerFormat(checkpoint)
        assert layers.spec.num_layers == 12
        for index in range(12):
            prefix = layers.architecture.memory.layer(index)
            state = layers.read(index)
            for name, tensor in state.items():
                assert torch.equal(tensor, memory[f"{prefix}.{name}"]), name
            for name, tensor in layers.write(index, state).items():
                assert torch.equal(tensor, checkpoint.tensor(name)), name


@pytest.mark.parametrize("family", tiny.ALL)
def test_parts_hold_the_same_number_of_weights_in_memory_and_on_disk(family: str, tmp_path: Path) -> None:
    path = tiny.save_tiny(family, tmp_path / family)
    row = FAMILIES[family]
    model = tiny.tiny_model(family)
    memory: Counter[str] = Counter()
    persistent = model.state_dict()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in persistent:
            memory[row.part(name)] += tensor.numel()
    disk: Counter[str] = Counter()
    with safe_open(path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            disk[row.part(name)] += file.get_tensor(name).numel()
    assert memory == disk


@pytest.mark.parametrize("family", tiny.MOE)
def test_expert_layout_and_router_in_memory(family: str) -> None:
    model = tiny.tiny_model(family)
    spec = ModelSpec.of(model.config)
    row = spec.architecture
    assert row.moe is not None
    layout, router, count = row.moe.memory, row.moe.router, spec.num_experts
    hidden = model.config.hidden_size
    state = model.state_dict()
    layers = spec.moe_layers
    assert layers
    listed = {
        f"{row.memory.layer(layer)}.{name}"
        for layer in layers
        for name in (*layout.matrices, *layout.biases, *router.names)
    }
    assert listed == {n for n in state if row.part(n) in ("experts", "router")}
    for layer in range(tiny.LAYERS):
        prefix = row.memory.layer(layer)
        assert (f"{prefix}.{layout.down}" in state) == (layer in layers)
        if layer not in layers:
            continue
        down, gate = state[f"{prefix}.{layout.down}"], state[f"{prefix}.{layout.gate}"]
        assert down.shape[0] == gate.shape[0] == count
        assert down.shape[2 if layout.transposed else 1] == hidden
        assert gate.shape[1 if layout.transposed else 2] == hidden
        assert all(state[f"{prefix}.{name}"].shape[0] == count for name in layout.biases)
        assert state[f"{prefix}.{router.weight}"].shape == (count, hidden)
        assert all(state[f"{prefix}.{name}"].shape[-1] == count for name in router.per_expert[1:])
        outputs: list[Any] = []
        gate_module = model.get_submodule(f"{prefix}.{router.module}")
        hook = gate_module.register_forward_hook(lambda _m, _a, out, box=outputs: box.append(out))
        with torch.no_grad():
            model(IDS, use_cache=False)
        hook.remove()
        if row.moe.chosen_output is not None:
            chosen = outputs[0][row.moe.chosen_output]
            assert chosen.shape == (IDS.numel(), spec.experts_per_token)
            assert not chosen.is_floating_point()


@pytest.mark.parametrize("family", tiny.MOE)
def test_gate_and_up_match_the_layout(family: str) -> None:
    model = tiny.tiny_model(family)
    row = FAMILIES[family]
    assert row.moe is not None
    layout = row.moe.memory
    assert layout.fused
    assert layout.stacked
    layer = row.memory.layer(ModelSpec.of(model.config).moe_layers[0])
    experts = model.get_submodule(f"{layer}.{layout.module}")
    weight = model.get_parameter(f"{layer}.{layout.gate}")
    tokens, count = 6, ModelSpec.of(model.config).num_experts
    hidden = 0.1 * torch.randn(tokens, model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def output() -> torch.Tensor:
        if family == "llama4_text":  # sends every token to every expert
            return experts(hidden.repeat(count, 1))
        return experts(hidden, torch.zeros(tokens, 1, dtype=torch.long), torch.ones(tokens, 1))

    outputs = weight.movedim(2, 1) if layout.transposed else weight  # [experts, 2 * inter, hidden]
    half = outputs.shape[1] // 2
    gate, up = (
        (outputs[:, 0::2], outputs[:, 1::2]) if layout.interleaved else outputs.split([half, half], dim=1)
    )
    with torch.no_grad():
        for name in layout.biases:
            model.get_parameter(f"{layer}.{name}").zero_()
        plain = output()
        kept = gate.clone(), up.clone()
        if family == "gpt_oss":  # (up + 1) * gate * sigmoid(alpha * gate): only a zero gate closes it
            up.zero_()
            assert output().abs().max() > 0
            up.copy_(kept[1])
        else:  # linear in up, not in gate
            up.mul_(2)
            torch.testing.assert_close(output(), 2 * plain)
            up.copy_(kept[1])
            gate.mul_(2)
            assert not torch.allclose(output(), 2 * plain, rtol=1e-2)
        gate.zero_()
        assert output().abs().max() == 0


@pytest.fixture(scope="module")
def probe() -> list[tuple[Any, torch.Tensor | None, dict[str, Any]]]:
    """Register the attention implementation `probe`; return the list of its calls."""
    calls: list[tuple[Any, torch.Tensor | None, dict[str, Any]]] = []

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        calls.append((module, mask, kwargs))
        return query.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2), None

    AttentionInterface.register("probe", attention)
    AttentionMaskInterface.register("probe", eager_mask)
    return calls


@pytest.mark.parametrize("family", tiny.ALL)
def test_windows_are_the_masks_that_transformers_builds(family: str, probe: list[Any]) -> None:
    model = tiny.tiny_model(family)
    windows = ModelSpec.of(model.config).windows
    model.set_attn_implementation("probe")
    probe.clear()
    marker = object()
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False, justright=marker)
    assert [module.layer_idx for module, _, _ in probe] == list(range(tiny.LAYERS))
    assert all(kwargs["justright"] is marker for _, _, kwargs in probe)  # the engine relies on this
    q, k = torch.arange(IDS.numel())[:, None], torch.arange(IDS.numel())[None]
    for window, (_, mask, _) in zip(windows, probe, strict=True):
        visible = k <= q
        if window is not None:
            near = k > q - window.size if window.kind == "sliding" else k // window.size == q // window.size
            visible = visible & near
        assert torch.equal(mask[0, 0] == 0, visible)


@pytest.mark.parametrize("family", [f for f in tiny.ALL if FAMILIES[f].reach != "full" and f != "mixtral"])
def test_tokens_beyond_the_window_do_not_count(family: str) -> None:
    kind = "chunked_attention" if family == "llama4_text" else "sliding_attention"
    changes: dict[str, Any] = {"num_hidden_layers": 1}
    if FAMILIES[family].reach == "layer_types":
        changes["layer_types"] = [kind]
    model = tiny.tiny_model(family, **changes)
    (window,) = ModelSpec.of(model.config).windows
    assert window is not None
    last = IDS.numel() - 1
    first = last - window.size + 1 if window.kind == "sliding" else last // window.size * window.size

    def logits(changed: int | None) -> torch.Tensor:
        ids = IDS.clone()
        if changed is not None:
            ids[0, changed] = 100
        with torch.no_grad():
            return model(ids, use_cache=False).logits[0, -1]

    plain = logits(None)
    assert torch.allclose(logits(first - 1), plain, rtol=0, atol=1e-6)
    assert not torch.allclose(logits(first), plain, rtol=0, atol=1e-3)


def test_the_table_and_the_tiny_models_cover_each_other() -> None:
    assert set(FAMILIES) - set(tiny.ALL) == {"arctic", "llama4"}
    assert supported_families() == tuple(sorted(FAMILIES))
    assert not RECURRENT & set(FAMILIES)
    assert set(CONFIG_MAPPING) >= RECURRENT


def test_llama4_multimodal_config_reads_its_text_part() -> None:
    inner = tiny.tiny_config("llama4_text")
    config = AutoConfig.for_model("llama4", text_config=inner.to_dict())
    spec = ModelSpec.of(config)
    row = spec.architecture
    assert spec.moe_layers == (1, 3)
    assert replace(spec, architecture=FAMILIES["llama4_text"]) == ModelSpec.of(inner)
    model = AutoModelForCausalLM.from_config(config)
    assert all(row.part(name) != "other" for name in model.state_dict())
    name = "language_model.model.layers.1.feed_forward.experts.down_proj"
    assert row.part(name) == "experts"
    assert row.part("vision_model.model.layers.1.mlp.fc1.weight") == "other"


def test_arctic_is_read_by_its_layout() -> None:
    spec = ModelSpec.of(ARCTIC)
    row = spec.architecture
    assert not row.stock
    assert spec.experts == (0, 128, 0, 128)
    assert (spec.num_experts, spec.experts_per_token) == (128, 2)
    assert spec.windows == (None,) * 4
    assert spec.context == spec.usable_context == 4096
    names = [m.name for m in spec.linears]
    assert "model.layers.0.block_sparse_moe.mlp.w1" in names
    assert "model.layers.1.residual_mlp.w2" in names
    assert "model.layers.0.residual_mlp.w2" not in names
    for name, part in {
        "block_sparse_moe.experts.127.w3.weight": "experts",
        "block_sparse_moe.gate.weight": "router",
        "block_sparse_moe.mlp.w1.weight": "mlp",
        "residual_mlp.w2.weight": "mlp",
        "residual_layernorm.weight": "norm",
        "self_attn.o_proj.weight": "attention",
    }.items():
        assert row.part(f"model.layers.1.{name}") == part


@pytest.mark.parametrize(
    ("family", "name", "part"),
    [
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_blocks", "experts"),
        ("gpt_oss", "model.layers.0.self_attn.sinks", "attention"),
        ("deepseek_v3", "model.layers.1.mlp.experts.5.up_proj.weight_scale_inv", "experts"),
        ("deepseek_v3", "model.layers.4.mlp.experts.5.up_proj.weight", "other"),  # multi-token prediction
        ("deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias", "router"),
        ("ernie4_5_moe", "model.layers.1.mlp.moe_statics.e_score_correction_bias", "router"),
        ("qwen2_moe", "model.layers.1.mlp.shared_expert_gate.weight", "router"),
        ("llama", "lm_head.weight", "head"),
        ("llama", "model.embed_tokens.weight", "embedding"),
        ("llama", "model.rotary_emb.inv_freq", "other"),
    ],
)
def test_parameter_part_of_special_names(family: str, name: str, part: str) -> None:
    assert ModelSpec.of(tiny.tiny_config(family)).part(name) == part


def test_context_length() -> None:
    assert ModelSpec.of(tiny.tiny_config("llama")).context == 512
    assert ModelSpec.of(tiny.tiny_config("gemma3")).context == 512
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 1e4}
    assert ModelSpec.of(tiny.tiny_config("qwen2", rope_parameters=yarn)).context == 2048
    assert ModelSpec.of(tiny.tiny_config("gpt_oss")).context == 512
    assert ModelSpec.of(tiny.tiny_config("gpt_oss")).usable_context == 512
    long = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    phi3 = tiny.tiny_config("phi3", rope_parameters=long, original_max_position_embeddings=32)
    assert (ModelSpec.of(phi3).context, ModelSpec.of(phi3).usable_context) == (512, 32)


@pytest.mark.parametrize("family", tiny.ALL)
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_tied_as_transformers_ties_it(family: str, tied: bool) -> None:
    config = tiny.tiny_config(family)
    config.tie_word_embeddings = tied  # of gemma3, the outer one counts
    model = AutoModelForCausalLM.from_config(config)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied == ModelSpec.of(config).tied == ModelSpec.of(config.to_dict()).tied


def test_a_value_that_no_model_has_is_refused() -> None:
    with pytest.raises(CheckpointError, match="vocab_size = None; allowed: a whole number from 1"):
        ModelSpec.of(ARCTIC | {"vocab_size": None})


def test_groups_count_only_where_routing_uses_them() -> None:
    assert ModelSpec.of(tiny.tiny_config("deepseek_v3")).expert_groups == (4, 2)
    assert ModelSpec.of(tiny.tiny_config("deepseek_v2")).expert_groups == (4, 2)
    assert ModelSpec.of(tiny.tiny_config("deepseek_v2", topk_method="greedy")).expert_groups == (1, 1)
    assert ModelSpec.of(tiny.tiny_config("mixtral")).expert_groups == (1, 1)
    no_shared = ModelSpec.of(tiny.tiny_config("ernie4_5_moe", moe_num_shared_experts=0)).linears
    assert not [m for m in no_shared if m.part == "shared_experts"]


def test_unknown_family() -> None:
    with pytest.raises(UnsupportedModelError) as error:
        architecture_of({"model_type": "gpt_bigcode"})
    assert all(word in str(error.value) for word in ("'gpt_bigcode'", "llama", "add", "table.py"))
    with pytest.raises(UnsupportedModelError, match="no model_type"):
        architecture_of({"hidden_size": 8})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba2"},
        {"model_type": "something_new", "layer_types": ["full_attention", "linear_attention"]},
        {"model_type": "something_new", "text_config": {"layer_types": ["conv"]}},
        SimpleNamespace(model_type="something_old", layers_block_type=["attention", "mamba"]),
    ],
)
def test_recurrent_family_is_refused_with_the_reason(config: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"recurrent or hybrid.*cannot be rolled back"):
        architecture_of(config)


def test_configs_that_cannot_work() -> None:
    with pytest.raises(UnsupportedModelError, match="later tokens"):
        architecture_of(tiny.tiny_config("gemma3_text", use_bidirectional_attention=True))
    with pytest.raises(UnsupportedModelError, match="sliding_window is None"):
        ModelSpec.of(tiny.tiny_config("olmo3", sliding_window=None))
    with pytest.raises(CheckpointError, match="config of this llama model is invalid"):
        ModelSpec.of({"model_type": "llama", "num_hidden_layers": "many"})

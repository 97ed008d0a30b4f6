"""One frozen row of data per model family: where the matrices, the experts and the router are.

This file holds data only: :mod:`justright.architectures.schema` says what the fields mean, and
:mod:`justright.architectures.spec` holds the functions that read them.
Every fact was read from transformers 5.23 (``models/<family>/modeling_*.py``, ``configuration_*.py`` and
``conversion_mapping.py`` for the names on disk) and is checked against tiny models in
``tests/architectures/test_spec.py``. ``arctic`` has no stock class: its row follows the checkpoint that
Snowflake published, as vLLM's ``model_executor/models/arctic.py`` loads it.

**To add a family**: add a row to :data:`FAMILIES`, keyed by the config's ``model_type``, and a tiny config
in ``tests/tiny.py``; the test matrix picks both up. A family that keeps a recurrent state belongs in
:data:`RECURRENT` instead.
"""

from __future__ import annotations

from dataclasses import replace

from justright.architectures.schema import (
    Architecture,
    ExpertLayout,
    LayerKind,
    LayerRule,
    Linear,
    Moe,
    Names,
    Part,
    Reach,
    Router,
)


def _linears(module: str, names: str, part: Part, layers: LayerKind = "all") -> tuple[Linear, ...]:
    return tuple(Linear(f"{module}.{name}", part, layers) for name in names.split())


def _per_expert(module: str, gate: str, up: str, down: str) -> ExpertLayout:
    gate, up, down = (f"{module}.{{e}}.{name}.weight" for name in (gate, up, down))
    return ExpertLayout(gate, up, down, stacked=False)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_ATTENTION = _linears("self_attn", "q_proj k_proj v_proj o_proj", "attention")
_MLP = "gate_proj up_proj down_proj"
_DENSE_MLP = _linears("mlp", _MLP, "mlp")

# Multi-head latent attention (deepseek): the query has a low-rank path or a direct one.
_MLA = (
    Linear("self_attn.q_proj", "attention", unless="q_lora_rank"),
    Linear("self_attn.q_a_proj", "attention", when="q_lora_rank"),
    Linear("self_attn.q_b_proj", "attention", when="q_lora_rank"),
    *_linears("self_attn", "kv_a_proj_with_mqa kv_b_proj o_proj", "attention"),
)
_MLA_FUSED = (
    ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"),
    ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
)

# transformers 5 stacks the experts in memory, gate above up, [experts, out, in].
_STACKED = ExpertLayout(
    "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj", stacked=True
)
_PER_EXPERT = _per_expert("mlp.experts", "gate_proj", "up_proj", "down_proj")
_GATE = Router("mlp.gate.weight")
_CORRECTED_GATE = Router("mlp.gate.weight", correction_bias="mlp.gate.e_score_correction_bias")
_SHARED_GATE = Router("mlp.gate.weight", others=("mlp.shared_expert_gate.weight",))
_GPT_OSS_EXPERTS = ExpertLayout(
    *("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    stacked=True,
    transposed=True,
    interleaved=True,
    gate_bias="mlp.experts.gate_up_proj_bias",
    up_bias="mlp.experts.gate_up_proj_bias",
    down_bias="mlp.experts.down_proj_bias",
)
_LLAMA4_EXPERTS = ExpertLayout(
    *("feed_forward.experts.gate_up_proj", "feed_forward.experts.gate_up_proj"),
    "feed_forward.experts.down_proj",
    stacked=True,
    transposed=True,
)


def _dense(family: str, reach: Reach = "full", **changes: object) -> Architecture:
    row = Architecture(family, _ATTENTION + _DENSE_MLP, (_QKV, _GATE_UP), reach)
    return replace(row, **changes)  # type: ignore[arg-type]


def _deepseek_moe(router: Router) -> Moe:
    """Deepseek's block, which glm4_moe shares: leading dense layers, groups, shared experts."""
    return Moe(
        *(_STACKED, _PER_EXPERT, router, router),
        count_keys=("n_routed_experts", "num_local_experts", "num_experts"),
        group_keys=("n_group", "topk_group"),
        shared="mlp.shared_experts",
        shared_count_key="n_shared_experts",
        layers=LayerRule(start="first_k_dense_replace"),
    )


_QWEN_RULE = LayerRule(step="decoder_sparse_step", skip="mlp_only_layers")
_QWEN2_MOE = Moe(
    *(_STACKED, _PER_EXPERT, _SHARED_GATE, _SHARED_GATE),
    count_keys=("num_experts",),
    shared="mlp.shared_expert",
    layers=_QWEN_RULE,
)
_QWEN3_MOE = Moe(
    *(_STACKED, _PER_EXPERT, _GATE, _GATE), count_keys=("num_experts", "num_local_experts"), layers=_QWEN_RULE
)
_OLMOE = Moe(*(_STACKED, _PER_EXPERT, _GATE, _GATE), count_keys=("num_experts", "num_local_experts"))
_MIXTRAL = Moe(
    memory=_STACKED,
    disk=_per_expert("block_sparse_moe.experts", "w1", "w3", "w2"),
    router=_GATE,
    router_disk=Router("block_sparse_moe.gate.weight"),
    count_keys=("num_local_experts", "num_experts"),
)
_ERNIE = Moe(
    memory=_STACKED,
    disk=_PER_EXPERT,
    router=Router("mlp.gate.weight", correction_bias="mlp.gate.moe_statics.e_score_correction_bias"),
    router_disk=Router("mlp.gate.weight", correction_bias="mlp.moe_statics.e_score_correction_bias"),
    count_keys=("moe_num_experts", "num_experts"),
    top_k_keys=("moe_k", "num_experts_per_tok"),
    shared="mlp.shared_experts",
    shared_count_key="moe_num_shared_experts",
    layers=LayerRule("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index"),
)
_GPT_OSS = Moe(
    memory=_GPT_OSS_EXPERTS,
    disk=replace(_GPT_OSS_EXPERTS, packed=("_blocks", "_scales")),  # MXFP4: as OpenAI published it
    router=Router("mlp.router.weight", bias="mlp.router.bias"),
    router_disk=Router("mlp.router.weight", bias="mlp.router.bias"),
    count_keys=("num_local_experts", "num_experts"),
)
_LLAMA4 = Moe(
    memory=_LLAMA4_EXPERTS,
    disk=_LLAMA4_EXPERTS,
    router=Router("feed_forward.router.weight"),
    router_disk=Router("feed_forward.router.weight"),
    count_keys=("num_local_experts",),
    shared="feed_forward.shared_expert",
    layers=LayerRule(step="interleave_moe_layer_step", only="moe_layers"),
    chosen_output=None,
)
_ARCTIC_EXPERTS = _per_expert("block_sparse_moe.experts", "w1", "w3", "w2")
_ARCTIC = Moe(
    memory=_ARCTIC_EXPERTS,
    disk=_ARCTIC_EXPERTS,
    router=Router("block_sparse_moe.gate.weight"),
    router_disk=Router("block_sparse_moe.gate.weight"),
    count_keys=("num_local_experts",),
    layers=LayerRule(step="moe_layer_frequency"),
    chosen_output=None,
)


def _moe(family: str, moe: Moe, reach: Reach = "full") -> Architecture:
    """Row of a family with standard attention, `mlp.*` in dense layers and `mlp.experts` in MoE layers."""
    linears = _ATTENTION + _linears("mlp", _MLP, "mlp", "dense")
    fused: tuple[tuple[str, ...], ...] = (_QKV, _GATE_UP)
    if moe.shared:
        linears += _linears(moe.shared, _MLP, "shared_experts", "moe")
        fused += ((f"{moe.shared}.gate_proj", f"{moe.shared}.up_proj"),)
    return Architecture(family, linears, fused, reach, moe)


def _mla(family: str, moe: Moe) -> Architecture:
    row = _moe(family, moe)
    return replace(row, linears=_MLA + row.linears[len(_ATTENTION) :], fused=_MLA_FUSED + row.fused[1:])


_LLAMA4_TEXT = Architecture(
    "llama4_text",
    _ATTENTION
    + _linears("feed_forward", _MLP, "mlp", "dense")
    + _linears("feed_forward.shared_expert", _MLP, "shared_experts", "moe"),
    (
        _QKV,
        ("feed_forward.gate_proj", "feed_forward.up_proj"),
        ("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
    ),
    "layer_types",
    _LLAMA4,
    index_scaled=True,
)

_ROWS = (
    _dense("llama"),
    _dense("mistral", "every_layer"),
    _dense("qwen2", "layer_types"),
    _dense("qwen3", "layer_types"),
    _dense("smollm3", "layer_types"),
    _dense("gemma2", "layer_types"),
    _dense("gemma3_text", "layer_types"),
    _dense(  # AutoModelForCausalLM gives the multimodal class; its decoder is gemma3_text
        "gemma3",
        "layer_types",
        nested=True,
        memory=Names("model.language_model"),
        disk=Names("language_model.model", "language_model.lm_head.weight"),
    ),
    _dense(
        "phi3",
        "every_layer",
        linears=_linears("self_attn", "qkv_proj o_proj", "attention")
        + _linears("mlp", "gate_up_proj down_proj", "mlp"),
        fused=(),
    ),
    _dense("olmo2"),
    _dense("olmo3", "layer_types"),
    _dense("granite"),
    _dense(
        "starcoder2",
        "every_layer",
        linears=_ATTENTION + _linears("mlp", "c_fc c_proj", "mlp"),
        fused=(_QKV,),
    ),
    _moe("mixtral", _MIXTRAL, "every_layer"),
    _moe("qwen2_moe", _QWEN2_MOE, "layer_types"),
    _moe("qwen3_moe", _QWEN3_MOE, "every_layer"),
    _moe("olmoe", _OLMOE),
    _mla("deepseek_v2", _deepseek_moe(_GATE)),
    _mla("deepseek_v3", _deepseek_moe(_CORRECTED_GATE)),
    _moe("gpt_oss", _GPT_OSS, "layer_types"),
    _moe("glm4_moe", _deepseek_moe(_CORRECTED_GATE)),
    _moe("ernie4_5_moe", _ERNIE),
    _LLAMA4_TEXT,
    replace(  # AutoModelForCausalLM takes the text part out of the multimodal checkpoint
        _LLAMA4_TEXT,
        family="llama4",
        nested=True,
        disk=Names("language_model.model", "language_model.lm_head.weight"),
    ),
    Architecture(
        "arctic",
        _ATTENTION
        + _linears("block_sparse_moe.mlp", "w1 w3 w2", "mlp", "dense")
        + _linears("residual_mlp", "w1 w3 w2", "mlp", "moe"),
        (
            _QKV,
            ("block_sparse_moe.mlp.w1", "block_sparse_moe.mlp.w3"),
            ("residual_mlp.w1", "residual_mlp.w3"),
        ),
        moe=_ARCTIC,
        stock=False,
    ),
)

FAMILIES: dict[str, Architecture] = {row.family: row for row in _ROWS}

# Families whose layers, some or all, carry a state from token to token (state space, linear attention,
# short convolution): found by their use of a recurrent cache in transformers 5.23.
RECURRENT = frozenset(
    (
        *("bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear"),
        *("lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid"),
        *("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp"),
        *("recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya"),
    )
)

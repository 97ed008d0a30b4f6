"""Tiny GGUF files, written by the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedModel

from tiny import CHAT_TEMPLATE, SPECIAL, tiny_model, tiny_tokenizer

ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma2")},
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
}
"""transformers' ``model_type`` -> GGUF's ``general.architecture``."""
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"use_sliding_window": False} for name in ("qwen2", "qwen3")},
    "qwen2_moe": {"use_sliding_window": False, "mlp_only_layers": [], "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"use_sliding_window": False, "decoder_sparse_step": 1},
    "gemma2": {"tie_word_embeddings": True},
    "gemma3_text": {
        "tie_word_embeddings": True,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
}  # fmt: skip
"""What GGUF files cannot say differently: changes to `tiny_model` of each family."""
Writing = Callable[[gguf.GGUFWriter], None]


def gguf_model(family: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of a family, whose config a GGUF file can hold."""
    return tiny_model(family, **(CHANGES.get(family, {}) | changes))


def write_gguf(
    path: Path,
    family: str = "llama",
    kind: Type = Type.Q8_0,
    *,
    model: PreTrainedModel | None = None,
    tokens: Writing | None = None,
    more: Writing = lambda _: None,
    leave_out: tuple[str, ...] = (),
    **changes: Any,
) -> Path:
    """Write a tiny model; matrices as ``kind``, where the gguf package can quantise to it.

    Args:
        path: The file.
        family: transformers' ``model_type``.
        kind: Of the matrices.
        model: Instead of `gguf_model` of the family.
        tokens: Writes the tokenizer, instead of `add_tokens`.
        more: Adds to the file before it is written.
        leave_out: Keys of the header.
        changes: To the model's config.
    """
    model = model or gguf_model(family, **changes)
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    for key, value in header(model, ARCHITECTURES[family]).items():
        if key not in leave_out:
            add_value(writer, key, value)
    (tokens or add_tokens)(writer)
    for name, values in tensors(model, ARCHITECTURES[family]).items():
        flat = values.ndim == 1 or name.endswith("ffn_gate_inp.weight")
        raw = values if flat else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, raw, raw_dtype=Type.F32 if flat else kind)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def header(model: PreTrainedModel, arch: str) -> dict[str, Any]:
    """The key-values of llama.cpp's converter, for one config."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
    }
    if arch in ("qwen3", "qwen3moe", "gemma2", "gemma3"):
        found |= {"attention.key_length": head, "attention.value_length": head}
    if arch == "llama":
        found |= {"rope.dimension_count": head, "vocab_size": config.vocab_size}
    if arch in ("gemma2", "gemma3"):
        found["attention.sliding_window"] = config.sliding_window
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if arch == "gemma2" and getattr(config, cap) is not None:
            found[cap] = float(getattr(config, cap))
    if arch.endswith("moe"):
        found |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        found["expert_feed_forward_length"] = config.moe_intermediate_size
    return {f"{arch}.{key}": value for key, value in found.items()}


def add_tokens(writer: gguf.GGUFWriter, pre: str = "qwen2") -> None:
    """The tiny tokenizer, in llama.cpp's keys."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for name in ("bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(getattr(tokenizer, f"{name}_token_id"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def tensors(model: PreTrainedModel, arch: str) -> Mapping[str, np.ndarray]:
    """A model's tensors by llama.cpp's names, in llama.cpp's layout."""
    config, found = model.config, dict[str, np.ndarray]()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if name.endswith("mlp.experts.gate_up_proj"):
            block = "blk." + name.split(".")[2]
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                found[f"{block}.ffn_{part}_exps.weight"] = np.ascontiguousarray(half)
            continue
        module, _, last = name.rpartition(".")
        if last == "down_proj":
            module, last = f"{module}.down_proj", "weight"
        if arch == "llama" and ".q_proj" in name:
            values = permuted(values, config.num_attention_heads)
        if arch == "llama" and ".k_proj" in name:
            values = permuted(values, config.num_key_value_heads)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if name.endswith("shared_expert_gate.weight"):
            values = values[0]
        found[f"{names.get_name(module)}.{last}"] = values
    return found


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """``LlamaModel.permute`` of llama.cpp's convert_hf_to_gguf.py."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    """The values of a file's tensors, by llama.cpp's names, from the gguf package."""
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(path).tensors
    }

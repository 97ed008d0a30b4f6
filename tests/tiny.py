"""Tiny random models of every supported family, with stock transformers classes and no download.

Each has 4 layers, 64 hidden dimensions and 320 tokens, in float32, and enough of its family's features to
catch a mistake: windows of 8 tokens beside full layers, dense layers beside layers with experts, groups of
experts, grouped queries, soft caps, sinks, latent attention whose value heads are narrower than its key
heads. Weights are drawn wide (std 0.2), biases and norms off their defaults, so that logits are far from
ties and no term is silently zero.
"""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 320
WINDOW = 8
LAYERS = 4
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# A random model with tied embeddings tends to repeat one token; smollm3 and ernie4_5_moe keep them tied.
_UNTIED = {"tie_word_embeddings": False}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
_GEMMA3 = _GEMMA | {"layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING]}
_MOE_WIDTH = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
_MLA = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
_DEEPSEEK = (
    _MLA
    | _MOE_WIDTH
    | {"num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
    | {"n_group": 4, "topk_group": 2}
)
_LLAMA4 = {
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": WINDOW,
    "floor_scale": 4,  # attention temperature tuning takes effect within a few tokens
}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

# Settings of each family beyond the common ones.
_DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 16, "sliding_window": WINDOW},
    "qwen2": _QWEN_WINDOW,
    "qwen3": _QWEN_WINDOW | {"head_dim": 16},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW},  # layer 3: no RoPE, slides
    "gemma2": _GEMMA | _UNTIED | {"attn_logit_softcapping": 5.0},
    "gemma3_text": _GEMMA3 | _UNTIED,
    "gemma3": _UNTIED
    | {
        "text_config": _COMMON | _GEMMA3 | _UNTIED,
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 319,
    },
    "phi3": {"sliding_window": WINDOW, "original_max_position_embeddings": 512},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 0.5,
    },
    "starcoder2": _UNTIED | {"sliding_window": WINDOW},
}
_MOE: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _MOE_WIDTH
    | {"num_experts": 6, "shared_expert_intermediate_size": 48, "mlp_only_layers": [0]}
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 4},
    "qwen3_moe": _MOE_WIDTH
    | {"num_experts": 8, "decoder_sparse_step": 2, "norm_topk_prob": True, "head_dim": 16}
    | {"use_sliding_window": True, "sliding_window": WINDOW},
    "olmoe": {"intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v2": _DEEPSEEK | {"q_lora_rank": None, "topk_method": "group_limited_greedy"},
    "deepseek_v3": _DEEPSEEK | {"q_lora_rank": 24},
    "gpt_oss": {
        "head_dim": 16,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
        },
    },
    "glm4_moe": _MOE_WIDTH
    | {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
    | {"use_qk_norm": True, "attention_bias": True},
    "ernie4_5_moe": {
        "moe_intermediate_size": 32,
        "moe_num_experts": 8,
        "moe_num_shared_experts": 1,
        "moe_k": 2,
        "moe_layer_start_index": 1,
    },
    "llama4_text": _LLAMA4,
}

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
DENSE: tuple[str, ...] = tuple(_DENSE)
MOE: tuple[str, ...] = tuple(_MOE)
ALL: tuple[str, ...] = DENSE + MOE


def tiny_config(family: str, **changes: Any) -> PretrainedConfig:
    """The config of the family's tiny model; ``changes`` replace settings of the decoder."""
    settings = (_DENSE | _MOE)[family]
    if "text_config" in settings:
        settings = settings | {"text_config": settings["text_config"] | changes}
        return AutoConfig.for_model(family, **settings)
    return AutoConfig.for_model(family, **(_COMMON | settings | changes))


def twelve(family: str) -> dict[str, Any]:
    """Changes that give the family's tiny model 12 layers and, if it has experts, 12 experts per layer.

    As text, 10 sorts before 2, so that only more than ten layers or experts reveal a wrong order.
    """
    changes: dict[str, Any] = {"num_hidden_layers": 12}
    settings = (_DENSE | _MOE)[family]
    settings = settings.get("text_config", settings)
    changes |= {key: 12 for key in EXPERT_COUNTS if key in settings}
    if "layer_types" in settings:
        changes["layer_types"] = settings["layer_types"] * 3
    return changes


def tiny_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The family's tiny model in float32 and evaluation mode, the same for the same seed."""
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")
    }
    # Gemma multiplies its embeddings; with the same spread as other weights, they would dominate the layers.
    embedding_std = 0.2 / getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
    with torch.no_grad():
        for name in sorted(tensors):
            tensor = tensors[name]
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1 and "norm" in name and not name.endswith("bias"):
                tensor.add_(0.1 * noise)  # around the family's neutral value, 0 or 1
            else:
                tensor.copy_(noise * (embedding_std if "embed_tokens" in name else 0.2))
    return model.eval()


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens that encodes any text, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([__doc__ or "", "the quick brown fox and the lazy dog"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tokenizer_with(template: str | None, *tokens: str | AddedToken) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with another chat template, and further tokens."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(list(tokens))
    tokenizer.chat_template = template
    return tokenizer


_SAVED = TemporaryDirectory(prefix="justright-tiny-")
_saved: dict[str, Path] = {}


def save_tiny(family: str, path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a complete checkpoint: config, safetensors, generation config, tokenizer, chat template.

    It is made once a process; every call gets a copy of its own.
    """
    key = json.dumps([family, seed, changes], sort_keys=True)
    if key not in _saved:
        folder = Path(_SAVED.name) / str(len(_saved))
        tiny_model(family, seed, **changes).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        _saved[key] = folder
    shutil.copytree(_saved[key], path, copy_function=shutil.copyfile, dirs_exist_ok=True)
    return path


def save_pair(folder: Path, family: str = "qwen3", **changes: Any) -> tuple[Path, Path]:
    """``(slow, fast)``: two checkpoints; slow has small random changes in every matrix of its layers."""
    slow, fast = (save_tiny(family, folder / name, **changes) for name in ("slow", "fast"))
    tensors = load_file(slow / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.ndim >= 2 and ".layers." in name and "gate.weight" not in name:
            tensors[name] = tensor + torch.randn(tensor.shape, generator=generator) * 0.04
    save_file(tensors, slow / "model.safetensors", {"format": "pt"})
    return slow, fast

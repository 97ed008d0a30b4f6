"""What a GGUF file's ``general.architecture`` means: the family, the names of its tensors, and its ``config.json``.

A GGUF file has llama.cpp's names and keys. Every value of the header that has a counterpart in the tensors' shapes is
compared with them, so that a header that contradicts the tensors gives an error here, not wrong numbers later.

Source: convert_hf_to_gguf.py and src/models/*.cpp of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

from justright.checkpoint.format import damaged
from justright.checkpoint.gguf_file import GgufFile, Strings
from justright.errors import CheckpointError, UnsupportedModelError

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{short}": f"self_attn.{short}_proj" for short in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_HEAD_NORMS = {f"attn_{short}_norm": f"self_attn.{short}_norm" for short in "qk"}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    **{f"ffn_{name}_exps": f"mlp.experts.{{e}}.{name}_proj" for name in ("gate", "up", "down")},
}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{name}_shexp": f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")},
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """A family that GGUF files of one ``general.architecture`` have.

    Attributes:
        model_type: transformers' name, and a key of the architecture table.
        causal_class: transformers' class.
        layer: llama.cpp's name of a module in ``blk.N.`` -> its path in a layer; ``{e}`` stands for the expert where
            the file stacks the experts.
        permuted: Whether the rows of q and k are in llama.cpp's order of rotary pairs, (0, 1), (2, 3), ..., where
            transformers pairs the first half of a head with the second.
        plus_one: Whether the file holds 1 + the weight of each norm.
        ends: Tokens that end an answer, beside the header's, where the vocabulary has them as control tokens.
    """

    model_type: str
    causal_class: str
    layer: dict[str, str]
    permuted: bool = False
    plus_one: bool = False
    ends: tuple[str, ...] = ()


FAMILIES = {
    "llama": GgufFamily(
        "llama", "LlamaForCausalLM", _LAYER, permuted=True, ends=("<|eot_id|>", "<|eom_id|>")
    ),
    "qwen2": GgufFamily("qwen2", "Qwen2ForCausalLM", _LAYER, ends=_QWEN_ENDS),
    "qwen3": GgufFamily("qwen3", "Qwen3ForCausalLM", _LAYER | _HEAD_NORMS, ends=_QWEN_ENDS),
    "qwen2moe": GgufFamily("qwen2_moe", "Qwen2MoeForCausalLM", _LAYER | _EXPERTS | _SHARED, ends=_QWEN_ENDS),
    "qwen3moe": GgufFamily(
        "qwen3_moe", "Qwen3MoeForCausalLM", _LAYER | _HEAD_NORMS | _EXPERTS, ends=_QWEN_ENDS
    ),
    "gemma2": GgufFamily(
        "gemma2", "Gemma2ForCausalLM", _LAYER | _GEMMA, plus_one=True, ends=("<end_of_turn>",)
    ),
    "gemma3": GgufFamily(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _LAYER | _GEMMA | _HEAD_NORMS,
        plus_one=True,
        ends=("<end_of_turn>",),
    ),
}
"""By ``general.architecture``."""

_GEMMA3_LOCAL_THETA = 10_000.0  # of sliding layers; llama.cpp's too: files before 2026 do not state it
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Layers of the models whose queries are scaled by hidden size / heads, where all others have the head's size."""
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def family_of(file: GgufFile) -> GgufFamily:
    """The family of a file.

    Raises:
        UnsupportedModelError: It is none of `FAMILIES`, or a llama with experts.
    """
    name = file.text("general.architecture")
    if name not in FAMILIES or (name == "llama" and file.values.get("llama.expert_count")):
        found = "a llama with experts (mixtral)" if name in FAMILIES else repr(name)
        raise UnsupportedModelError(
            f"the architecture of {file.path} is {found}; GGUF files of these can be opened: {', '.join(FAMILIES)}. "
            "Give the model's safetensors checkpoint instead"
        )
    return FAMILIES[name]


def hub_name(file: GgufFile, family: GgufFamily, name: str) -> str | None:
    """The Hugging Face name of a tensor, with ``{e}`` for stacked experts; None for rotary factors.

    Raises:
        CheckpointError: The family has no such tensor.
    """
    if name == _ROPE_FACTORS:
        return None
    module, _, kind = name.rpartition(".")
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    known = family.layer.get(match[2]) if match else _OUTER.get(module)
    if known is None or kind not in ("weight", "bias"):
        raise CheckpointError(
            f"{file.path} has the tensor {name!r}, which a {family.model_type} does not have. Give another file of the "
            "model, or its safetensors checkpoint"
        )
    return f"model.layers.{int(match[1])}.{known}.{kind}" if match else f"{known}.{kind}"


def config_of(file: GgufFile) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        CheckpointError: A value is missing or invalid, or contradicts the tensors.
        UnsupportedModelError: See `family_of`; attention or rotary embeddings that the family's class does not have.
    """
    return _Header(file).config()


class _Header:
    """Reads one file's key-values as a config."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.family = file, family_of(file)
        self.prefix = str(file.text("general.architecture"))
        self.layers = self.number("block_count")
        self.heads = self.number("attention.head_count")
        self.hidden = self.number("embedding_length")
        widths = [self.number(f"attention.{which}_length", 0) for which in ("key", "value")]
        self.head = widths[0] or self.number("rope.dimension_count", 0) or self.hidden // self.heads
        if widths[1] not in (0, self.head):
            raise UnsupportedModelError(
                f"{file.path} has keys of {widths[0]} values and values of {widths[1]}"
            )

    def number(self, key: str, default: int | None = None) -> int:
        if default is not None and f"{self.prefix}.{key}" not in self.file.values:
            return default
        return self.file.number(f"{self.prefix}.{key}")

    def real(self, key: str, default: float | None = None) -> float:
        return self.file.real(f"{self.prefix}.{key}", default)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.file.tensors:
            raise damaged(self.file.path, f"it has no tensor {name}")
        return self.file.tensors[name].shape

    def config(self) -> dict[str, Any]:
        kv_heads = self.number("attention.head_count_kv", self.heads)
        vocabulary = self.shape("token_embd.weight")[0]
        config = {
            "architectures": [self.family.causal_class],
            "model_type": self.family.model_type,
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.number("feed_forward_length", self.hidden),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": self.number("context_length"),
            "rms_norm_eps": self.real("attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": "output.weight" not in self.file.tensors,
            **{f"{name}_token_id": token for name, token in special_ids(self.file).items()},
            "dtype": "float32",
        }
        config |= (
            self.gemma() if self.prefix.startswith("gemma") else {"rope_parameters": self.rope(10_000.0)}
        )
        if self.prefix not in ("qwen2", "qwen2moe"):  # their heads always have hidden size / heads
            config["head_dim"] = self.head
        if self.prefix == "llama":
            config["attention_bias"] = "blk.0.attn_q.bias" in self.file.tensors
            config["mlp_bias"] = "blk.0.ffn_gate.bias" in self.file.tensors
        if self.prefix.endswith("moe"):
            config |= self.experts()
        self.check(config, kv_heads)
        return config

    def rope(self, theta: float) -> dict[str, Any]:
        """Rotary embeddings, with the scaling that the header or the tensor of factors states."""
        found: dict[str, Any] = {"rope_type": "default", "rope_theta": self.real("rope.freq_base", theta)}
        kind = self.file.text(f"{self.prefix}.rope.scaling.type", "none")
        if kind not in ("none", "linear", "yarn"):
            raise UnsupportedModelError(
                f"{self.file.path} scales its rotary embeddings by {kind!r}; allowed: linear, yarn"
            )
        if kind != "none":
            found |= {"rope_type": kind, "factor": self.real("rope.scaling.factor")}
        if kind == "yarn":
            found["original_max_position_embeddings"] = self.number("rope.scaling.original_context_length")
        if _ROPE_FACTORS in self.file.tensors:
            found |= self.llama3(found["rope_theta"])
        return found

    def llama3(self, theta: float) -> dict[str, Any]:
        """Llama 3.1's scaling, of which the file holds the resulting factor of each frequency."""
        entry = self.file.tensors[_ROPE_FACTORS]
        if entry.type != 0 or entry.shape != (self.head // 2,):
            raise damaged(self.file.path, f"{_ROPE_FACTORS} has the shape {list(entry.shape)}")
        factors = struct.unpack_from(f"<{self.head // 2}f", self.file.data, entry.start)
        factor, length = max(factors), _LLAMA3["original_max_position_embeddings"]
        for index, found in enumerate(factors):
            wavelength = 2 * math.pi * theta ** (2 * index / self.head)
            share = (length / wavelength - _LLAMA3["low_freq_factor"]) / (
                _LLAMA3["high_freq_factor"] - _LLAMA3["low_freq_factor"]
            )
            share = min(max(share, 0.0), 1.0)
            if not math.isclose(found, 1 / ((1 - share) / factor + share), rel_tol=1e-4):
                raise UnsupportedModelError(
                    f"{self.file.path} scales rotary frequencies by factors that are not Llama 3's. Give the model's "
                    "safetensors checkpoint instead"
                )
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}

    def gemma(self) -> dict[str, Any]:
        third = self.prefix == "gemma3"
        scale = self.hidden / self.heads if self.layers == _GEMMA_27B[self.prefix] else self.head
        kinds = ("sliding_attention", "full_attention")
        every = 6 if third else 2
        found: dict[str, Any] = {
            "query_pre_attn_scalar": int(scale) if scale == int(scale) else scale,
            "sliding_window": self.number("attention.sliding_window"),
            "layer_types": [kinds[(index + 1) % every == 0] for index in range(self.layers)],
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": self.rope(1_000_000.0 if third else 10_000.0),
        }
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            cap = f"{self.prefix}.{name}"
            found[name] = self.file.real(cap) if cap in self.file.values else None
        if third:
            local = {
                "rope_type": "default",
                "rope_theta": self.real("rope.freq_base_swa", _GEMMA3_LOCAL_THETA),
            }
            found["rope_parameters"] = dict(zip(kinds, (local, found["rope_parameters"]), strict=True))
        return found

    def experts(self) -> dict[str, Any]:
        moe = self.shape("blk.0.ffn_gate_exps.weight")
        found = {
            "num_experts": self.number("expert_count"),
            "num_experts_per_tok": self.number("expert_used_count"),
            "moe_intermediate_size": moe[-2],
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": self.prefix == "qwen3moe",  # llama.cpp's, and of every published model
        }
        if self.prefix == "qwen2moe":
            found["shared_expert_intermediate_size"] = self.shape("blk.0.ffn_gate_shexp.weight")[0]
        return found

    def check(self, config: dict[str, Any], kv_heads: int) -> None:
        """Compare the header with the tensors' shapes."""
        layers = {name.split(".")[1] for name in self.file.tensors if name.startswith("blk.")}
        tokens = self.file.values.get("tokenizer.ggml.tokens")
        count = len(tokens) if isinstance(tokens, Strings) else 0
        vocabulary, query, key = config["vocab_size"], self.heads * self.head, kv_heads * self.head
        expected: dict[str, tuple[object, object]] = {
            "layers": (len(layers), self.layers),
            "tokens": (count, vocabulary),
            "shape of token_embd": (self.shape("token_embd.weight"), (vocabulary, self.hidden)),
            "shape of attn_q": (self.shape("blk.0.attn_q.weight"), (query, self.hidden)),
            "shape of attn_k": (self.shape("blk.0.attn_k.weight"), (key, self.hidden)),
        }
        if not self.prefix.endswith("moe"):
            wide = (config["intermediate_size"], self.hidden)
            expected["shape of ffn_up"] = self.shape("blk.0.ffn_up.weight"), wide
        else:
            stacked = (config["num_experts"], config["moe_intermediate_size"], self.hidden)
            expected["shape of ffn_up_exps"] = self.shape("blk.0.ffn_up_exps.weight"), stacked
        for what, (found, stated) in expected.items():
            if found != stated:
                raise damaged(self.file.path, f"{what}: expected {stated}, found {found}")


def special_ids(file: GgufFile) -> dict[str, int]:
    """The ids of the special tokens that a header names: "bos", "eos", "pad", "unk".

    Raises:
        CheckpointError: An id is not a token of the vocabulary.
    """
    count = len(file.values.get("tokenizer.ggml.tokens", ()))
    found = {}
    for short, name in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        key = f"tokenizer.ggml.{name}_token_id"
        token = file.values.get(key)
        if token is None or token == 2**32 - 1:  # -1: none
            continue
        if type(token) is not int or not 0 <= token < count:
            raise damaged(file.path, f"{key} is {token!r}; allowed: 0 to {count - 1}")
        found[short] = token
    return found

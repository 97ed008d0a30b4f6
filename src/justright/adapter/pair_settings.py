"""Compare the config settings that affect the computation between the two models of a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from justright.architectures.spec import decoder_settings
from justright.checkpoint.reader import Checkpoint
from justright.readable import differences

_MISSING = "(missing)"
_READ_IF_THERE = ("head_dim", "partial_rotary_factor")
"""Keys that a family's model reads although its config class does not declare them."""

HARMLESS = frozenset(
    {
        # names, versions, and file loading
        "_name_or_path", "_commit_hash", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version",
        "quantization_config", "unsloth_fixed", "unsloth_version", "id2label", "label2id", "problem_type",
        "is_encoder_decoder", "use_cache", "return_dict", "output_attentions", "output_hidden_states",
        "chunk_size_feed_forward", "pretraining_tp", "_attn_implementation", "_attn_implementation_autoset",
        # tokens: `Pair` compares the tokenizers instead
        "bos_token_id", "eos_token_id", "pad_token_id",
        # training
        "initializer_range", "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "embedding_dropout",
        "residual_dropout", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "aux_loss_alpha",
        "seq_aux", "ep_size", "num_nextn_predict_layers",
        # shapes, which are compared tensor by tensor
        "vocab_size", "tie_word_embeddings",
        # windows: `ModelSpec.windows` replaces them
        "sliding_window", "use_sliding_window", "max_window_layers",
    }
)  # fmt: skip
"""Keys of config.json that may differ in a pair; any other key of the family may change the function."""


def function_differences(slow: Checkpoint, fast: Checkpoint) -> dict[str, tuple[Any, Any]]:
    """Settings that make two configs of one family compute differently: dotted key -> both values, slow first.

    Args:
        slow: The slow model.
        fast: The fast model. The family's defaults are filled in on both sides.
    """
    return differences(_function(slow), _function(fast), _MISSING)


def _function(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return every setting that may change the forward.

    Keys unknown to a family's config class (names left by tools, old keys) are excluded: its model does not read them.
    """
    decoder = decoder_settings(checkpoint.config)
    if isinstance(decoder, SimpleNamespace):  # a family without a config class
        found = dict(vars(decoder))
    else:
        plain = type(decoder)(bos_token_id=None, eos_token_id=None, pad_token_id=None)  # warns of none
        known = {*plain.to_dict(), *_READ_IF_THERE}
        found = {key: value for key, value in decoder.to_dict().items() if key in known}
    found = {key: value for key, value in found.items() if key not in HARMLESS}
    rope = found.get("rope_parameters") or {}
    kinds = [one for one in rope.values() if isinstance(one, Mapping)] or [
        rope
    ]  # one for each kind of layer, or one
    if all(one.get("rope_type", "default") == "default" for one in kinds):
        found.pop("max_position_embeddings", None)  # only a limit if positions are not scaled
    for index, window in enumerate(checkpoint.spec.windows):
        found[f"sliding_window of layer {index}"] = None if window is None else f"{window.kind} {window.size}"
    return dict(_flat(found))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings by their path, such as ``rope_parameters.factor``, so that a difference names one."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

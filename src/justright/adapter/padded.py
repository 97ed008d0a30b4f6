"""Export for serving engines: an adapter padded to one rank, and one chat template for both modes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from justright.adapter.adapter import CONFIG, WEIGHTS, Adapter
from justright.adapter.export import PADDED_RANKS, zero_padded
from justright.errors import UsageError
from justright.files import save_tensors, write_durably


def save_portable(adapter: Adapter, folder: Path, base: Path) -> int:
    """Write an adapter of any form into an existing folder, padded to one rank, without patterns.

    Args:
        adapter: The adapter.
        folder: Output folder.
        base: Directory of the model, for the config.

    Returns:
        The rank.

    Raises:
        UsageError: The adapter has stacked experts, whose factor names differ between engines; or the rank is too
            large.
    """
    if stacked := next((name for name, one in adapter.low_rank.items() if one.a.ndim != 2), None):
        raise UsageError(
            f"the switch changes stacked experts ({stacked}), and engines that need one rank for all modules disagree "
            "on their names: use the embedded engine, or a merged checkpoint (switch extract --form merged)"
        )
    most = max(one.a.shape[0] for one in adapter.low_rank.values())
    rank = next((rank for rank in PADDED_RANKS if rank >= most), None)
    if rank is None:
        raise UsageError(
            f"the switch has rank {most}, but engines take at most {PADDED_RANKS[-1]}: extract one with a lower --value"
        )
    tensors = {}
    for name, one in adapter.low_rank.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = zero_padded(one.a, rank, 0)
        tensors[f"base_model.model.{name}.lora_B.weight"] = zero_padded(one.b, rank, 1)
    modules = sorted({name.rpartition(".")[2] for name in adapter.low_rank})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank,
        "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "target_modules": modules, "inference_mode": True,
    }  # fmt: skip
    write_durably(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    return rank


def both_templates(slow: str, fast: str, special_tokens: Mapping[str, str] | None = None) -> str:
    """Combine two chat templates, unchanged: fast if ``enable_thinking`` is false, else slow.

    Each template begins on its own line, because chat templates do not render that line break, and ends before an
    empty expression, which keeps the next block from stripping spaces.

    Args:
        slow: Template of the slow model, used with the special tokens of the server's tokenizer.
        fast: Template of the fast model, used with ``special_tokens`` instead.
        special_tokens: Special tokens of the fast model by name (``eos_token``).
    """
    slow, fast = (text.removesuffix("\n") for text in (slow, fast))  # Jinja drops one trailing newline too
    chosen = "enable_thinking is defined and enable_thinking is false"
    own = "".join(f"{{% set {name} = {text!r} %}}" for name, text in (special_tokens or {}).items())
    return f"{{% if {chosen} %}}{own}\n{fast}{{{{ '' }}}}{{% else %}}\n{slow}{{{{ '' }}}}{{% endif %}}"

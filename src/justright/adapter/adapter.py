"""An adapter in the form that the engine needs: factors by module, exact deltas, and chat settings of the fast mode.

It is read from an ordinary PEFT folder. A switch folder adds ``switch.json`` (the model it was made for), the fast
model's ``chat_template.jinja``, ``generation_config.json`` (end tokens) and special tokens (in
``tokenizer_config.json``), and optionally ``exact_deltas.safetensors``. All of these are optional, so a plain PEFT
folder works too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.finite import load_tensors
from justright.checkpoint.mode_files import TEMPLATE as TEMPLATE
from justright.checkpoint.mode_files import read_end_tokens, read_special_tokens, read_template
from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError, UnsupportedModelError, UsageError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXACT = "exact_deltas.safetensors"
REPORT = "switch.json"

_MOST_RANK = 2**31
_KEY = re.compile(r"base_model\.model\.(?P<module>.+?)\.lora_(?P<which>[AB])(\.default)?\.weight")
_UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
)
"""PEFT settings that must be false, empty or missing."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """A low-rank change ``B @ A`` of one matrix, or of a stack of experts if the factors have 3 axes.

    ``B`` includes the adapter scale. It is float32 if the file's dtype cannot hold the scaled values exactly.

    Attributes:
        a: ``[(experts,) rank, in]``.
        b: ``[(experts,) out, rank]``.

    ``in`` and ``out`` are exchanged for a stack stored as ``[experts, in, out]`` in a module without the
    ``is_transposed`` attribute that PEFT looks for (Llama 4).
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """The change that turns a slow model into its fast counterpart.

    Attributes:
        path: Adapter folder.
        low_rank: Module path in memory -> change; for a stack of experts, the parameter's path.
        exact: Parameter path in memory -> ``fast - slow``, for norms, biases and routers.
        base: `weights_identity` of the model that it was made for; None if the folder does not state it.
        template: Chat template of the fast model, or None.
        settings: Content of ``switch.json``.
        end_tokens: End tokens of the fast model; if empty, those of the slow model apply.
        special_tokens: Special tokens of the fast model by name, for its template.
    """

    path: Path
    low_rank: Mapping[str, LowRank]
    exact: Mapping[str, Tensor]
    base: str | None
    template: str | None
    settings: Mapping[str, Any]
    end_tokens: frozenset[int] = frozenset()
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors and exact deltas."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def parameters(self) -> int:
        """Number of parameters in the factors and exact deltas."""
        return sum(tensor.numel() for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [
            *(tensor for one in self.low_rank.values() for tensor in (one.a, one.b)),
            *self.exact.values(),
        ]

    def check_base(self, model: Checkpoint) -> None:
        """Validate that the adapter was made for ``model``.

        Raises:
            UsageError: It was made for another model.
        """
        if self.base is None:
            return
        found = weights_identity(model)
        if found != self.base:
            made = self.settings.get("slow", "another model")
            raise UsageError(
                f"{self.path} was made for {made} (weights {self.base}), but {model.path} has weights {found}: "
                "give the slow model of its pair, or extract a switch for this model"
            )


def read_adapter(path: Path) -> Adapter:
    """Read an adapter folder written by `justright.adapter.extract` or PEFT.

    Raises:
        UsageError: The folder has no adapter.
        CheckpointError: The files are damaged, values are not finite, or tensors do not match each other.
        UnsupportedModelError: The adapter has more than low-rank factors (DoRA, saved modules, biases).
    """
    config = _read_json(path / CONFIG)
    _check_kind(path, config)
    _check_values(path, config)
    tensors = load_tensors(path / WEIGHTS)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnsupportedModelError(
                f"{path} has the tensor {key}; allowed: LoRA factors of linear modules"
            )
        pairs.setdefault(match["module"], {})[match["which"]] = tensor
    low_rank = {}
    for module, found in pairs.items():
        if set(found) != {"A", "B"}:
            raise CheckpointError(
                f"{path} has only lora_{next(iter(found))} of {module}: fetch the adapter again"
            )
        name = _full_name(path, module, list(pairs), config)
        stacked = name != module and not name.endswith(".weight")
        change = _low_rank(path, name, found["A"], found["B"], config, stacked=stacked)
        low_rank[name.removesuffix(".weight")] = change
    settings = read_report(path)
    return Adapter(
        path,
        low_rank,
        load_tensors(path / EXACT) if (path / EXACT).is_file() else {},
        settings.get("base"),
        read_template(path),
        settings,
        read_end_tokens(path),
        read_special_tokens(path),
    )


def read_report(path: Path) -> dict[str, Any]:
    """Read ``switch.json``; return an empty dictionary if it is missing."""
    return _read_json(path / REPORT) if (path / REPORT).is_file() else {}


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{path} is a {kind} adapter; allowed: LORA")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise UnsupportedModelError(
                f"{path} has {key} = {config[key]!r}, which is not supported; allowed: plain LoRA of linear modules"
            )
    if config.get("bias", "none") != "none":
        raise UnsupportedModelError(f"{path} has biases ({config['bias']!r}); allowed: 'none'")


def _check_values(path: Path, config: Mapping[str, Any]) -> None:
    """Validate the types and ranges of the values in adapter_config.json.

    Raises:
        CheckpointError: A value is not of the kind that PEFT writes.
    """

    def number(value: Any) -> bool:
        return type(value) in (int, float) and 0 < value < _MOST_RANK

    def pattern(value: Any) -> bool:
        return isinstance(value, dict) and all(number(v) and _is_regex(key) for key, v in value.items())

    def words(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)

    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "r": (lambda value: number(value) and value == int(value), "a whole number above 0"),
        "lora_alpha": (number, "a number above 0"),
        "rank_pattern": (pattern, "an object of numbers above 0 by module"),
        "alpha_pattern": (pattern, "an object of numbers above 0 by module"),
        "target_parameters": (words, "a list of names"),
    }
    for key, (good, allowed) in checks.items():
        needed = key in ("r", "lora_alpha")
        value = config.get(key)
        if (needed or value is not None) and not good(value):
            raise CheckpointError(
                f"{path / CONFIG} has {key} = {value!r}; expected {allowed}: fetch the file again"
            )


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _low_rank(
    path: Path, name: str, a: Tensor, b: Tensor, config: Mapping[str, Any], *, stacked: bool
) -> LowRank:
    """Build one matrix's factors; PEFT stores a stack flat: ``[experts * rank, in]``, ``[out, rank * experts]``."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"{path} is damaged: the factors of {name} have shapes {list(a.shape)} and {list(b.shape)}, which do not "
            "multiply. Fetch the adapter again"
        )
    rank = int(_pattern(config, "rank_pattern", name, config["r"]))
    alpha = _pattern(config, "alpha_pattern", name, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if stacked:
        experts = a.shape[0] // rank
        a = a.reshape(experts, rank, a.shape[-1])
        b = b.reshape(b.shape[0], rank, experts).permute(2, 0, 1).contiguous()
    exact = b.float() * scale
    scaled = exact.to(b.dtype)
    return LowRank(a, scaled if torch.equal(scaled.float(), exact) else exact)


def _pattern(config: Mapping[str, Any], kind: str, name: str, default: float) -> float:
    """Return PEFT's value for a module: the first pattern that matches the end of its path."""
    for pattern, value in (config.get(kind) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return float(default)


def _full_name(path: Path, module: str, modules: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return the path of the module, or of its parameter that PEFT changes.

    PEFT wraps a module once for each parameter that ends in one of ``target_parameters``, in the order of the
    module's parameters, the first innermost (``BaseTuner._inject_parameters``).

    Raises:
        UnsupportedModelError: The adapter does not state which parameters of the module it changes.
    """
    owner = module.replace(".base_layer", "")
    wraps = [one for one in modules if one.replace(".base_layer", "") == owner]
    own = {
        f"{owner}.{leaf}"
        for stem, _, leaf in (target.rpartition(".") for target in config.get("target_parameters") or ())
        if (f".{owner}".endswith(f".{stem}") if stem else owner.endswith(".experts") == (leaf != "weight"))
    }
    if not own:
        return module
    if len(own) != len(wraps):
        raise UnsupportedModelError(
            f"{path} changes {len(wraps)} parameters of {owner}, but its target_parameters name {len(own)} "
            f"({', '.join(sorted(own))}): list in adapter_config.json only the parameters that it changes"
        )
    # In every expert module down follows gate and up, and a bias its weight.
    ordered = sorted(own, key=lambda name: ("down" in name.rpartition(".")[2], name.endswith("bias"), name))
    return ordered[len(wraps) - 1 - module.count(".base_layer")]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Fetch the file again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: it must hold a JSON object. Fetch the file again")
    return found

"""A chosen switch as files that others read: PEFT adapters, compact or padded, and merged checkpoints.

The adapter *takes away* what reasoning added: ``W_slow + factor * B A`` with ``B = -U sqrt(S)``, ``A = sqrt(S) V^T`` is
the slow model at 0 and, at 1 and full rank, the fast model's matrices.

Source: arXiv:2510.06750 (the unlearning module ``L = -U_r S_r V_r^T``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justright.errors import UsageError
from justright.models.files import copy_companions, write_durably
from justright.models.matrices import expand, matrices
from justright.models.writing import CheckpointWriter
from justright.provenance import Provenance
from justright.switch.decompose import Spectra
from justright.switch.pair import Pair

PADDED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that serving engines take for all modules alike (vLLM's ``max_lora_rank``)."""

Ranks = Mapping[str, int]
"""``layers.INDEX.NAME`` -> rank."""


def adapter_tensors(pair: Pair, spectra: Spectra, ranks: Ranks, dtype: torch.dtype) -> dict[str, Tensor]:
    """PEFT's tensors by name: ``lora_A`` ``[rank, in]`` and ``lora_B`` ``[out, rank]`` of every module of rank above 0.

    Raises:
        UsageError: a rank above what the spectra keep.
    """
    found = {}
    for key, rank in ranks.items():
        if rank == 0:
            continue
        index, name = split_key(key)
        module = module_of(pair, index, name)
        u, s, vt = spectra.factors(index, name, rank)
        root = s.sqrt()
        found[f"base_model.model.{module}.lora_A.weight"] = (root[:, None] * vt).to(dtype).contiguous()
        found[f"base_model.model.{module}.lora_B.weight"] = (-u * root).to(dtype).contiguous()
    return found


def save_adapter(
    pair: Pair, spectra: Spectra, ranks: Ranks, folder: Path, dtype: torch.dtype, *, padded: bool = False
) -> None:
    """Write a PEFT adapter for the slow model into an existing folder.

    Args:
        pair: of which ``slow`` is the base model.
        spectra: of the pair.
        ranks: of every matrix.
        folder: to write into.
        dtype: of the factors.
        padded: every module padded with zeros to one rank, without patterns: for engines that know no others.

    Raises:
        UsageError: see `adapter_tensors`; or a rank too large to pad.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors = adapter_tensors(pair, spectra, ranks, dtype)
    modules = {module_of(pair, *split_key(key)): rank for key, rank in ranks.items() if rank}
    if not modules:
        raise UsageError("no matrix has a rank above 0: ask for more energy, or a higher rank")
    most = max(modules.values())
    patterns: dict[str, int] = {}
    if padded:
        most = next((rank for rank in PADDED_RANKS if rank >= most), 0)
        if not most:
            raise UsageError(
                f"the largest rank is {max(modules.values())}, and engines that need one rank for all take at most "
                f"{PADDED_RANKS[-1]}: ask for less energy, or for a compact adapter"
            )
        tensors = {
            name: _pad(tensor, most, 0 if ".lora_A." in name else 1) for name, tensor in tensors.items()
        }
    else:
        patterns = {f"^{re.escape(module)}$": rank for module, rank in modules.items() if rank != most}
    config = LoraConfig(
        r=most, lora_alpha=most, rank_pattern=patterns, alpha_pattern=dict(patterns), lora_dropout=0.0, bias="none",
        target_modules=list(modules), task_type="CAUSAL_LM", base_model_name_or_path=str(pair.paths[0]),
        inference_mode=True,
    )  # fmt: skip
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors lets only its owner read it
    _templates(pair, folder)


def save_merged(
    pair: Pair, spectra: Spectra, ranks: Ranks, out: Path, factor: float, provenance: Provenance | None = None
) -> Path:
    """Write the slow model with ``factor`` times the switch in its matrices as a checkpoint; stacked experts too.

    The chat template is the fast model's where the factor is 1.
    """
    fingerprint = {"merged": [str(path) for path in pair.paths], "ranks": dict(ranks), "factor": factor}
    source = pair.paths[1] if factor == 1 else pair.paths[0]
    with CheckpointWriter(
        out, fingerprint=fingerprint, source=source, expected_bytes=pair.slow.checkpoint.nbytes
    ) as writer:
        for name in pair.slow.other_names():
            writer.add(name, pair.slow.checkpoint.tensor(name))
        for index in range(pair.layers):
            state = pair.slow.read(index)
            for matrix in expand(matrices(pair.config, index), state):
                weight = state[matrix.name] = state[matrix.name].clone()
                rows = matrix.rows(weight)
                parts = [(f"{matrix.name}#{e}", rows[e]) for e in range(len(rows))] if matrix.stacked else []
                for name, part in parts or [(matrix.name, rows)]:
                    rank = ranks.get(f"layers.{index}.{name}", 0)
                    if rank:
                        u, s, vt = spectra.factors(index, name, rank)
                        part.copy_((part.float() - factor * (u * s) @ vt).to(part.dtype))
            for name, tensor in pair.slow.write(index, state).items():
                writer.add(name, tensor)
        return writer.finish(pair.config, provenance=provenance)


def refuse_stacked(pair: Pair) -> None:
    """Refuse a pair whose matrices an adapter file cannot name one by one.

    Raises:
        UsageError: it has stacked experts.
    """
    if any(matrix.stacked for index in range(pair.layers) for matrix in matrices(pair.config, index)):
        raise UsageError(
            "the pair has stacked experts, which adapter files cannot hold module by module: choose a merged checkpoint"
        )


def split_key(key: str) -> tuple[int, str]:
    """``layers.3.mlp.up_proj.weight`` -> ``(3, "mlp.up_proj.weight")``."""
    _, index, name = key.split(".", 2)
    return int(index), name


def module_of(pair: Pair, index: int, name: str) -> str:
    """The module path that a PEFT adapter names."""
    return f"{pair.slow.architecture.memory.layer(index)}.{name.removesuffix('.weight')}"


def _pad(tensor: Tensor, rank: int, axis: int) -> Tensor:
    """Zeros behind the rank axis, up to ``rank``."""
    shape = list(tensor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis).contiguous()


def _templates(pair: Pair, folder: Path) -> None:
    """The tokenizer of the slow model, and the fast model's chat template, which goes with the adapter."""
    copy_companions(pair.paths[0], folder)
    for name in ("README.md", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    template: Any = pair.paths[1] / "chat_template.jinja"
    if template.is_file():
        write_durably(folder / "chat_template.jinja", template.read_bytes())

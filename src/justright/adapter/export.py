"""Export a switch in standard formats: PEFT adapters, compact or padded, and merged checkpoints.

The adapter *subtracts* what reasoning training added: ``W_slow + factor * B A`` with ``B = -U sqrt(S)`` and
``A = sqrt(S) V^T`` is the slow model at scale 0 and, at scale 1 and full rank, has the fast model's matrices.

Source: arXiv:2510.06750 (the unlearning module ``L = -U_r S_r V_r^T``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justright.adapter.adapter import CONFIG, EXACT, WEIGHTS
from justright.adapter.pair import Pair
from justright.adapter.spectra import SpectraFolder
from justright.checkpoint.mode_files import (
    GENERATION,
    PROCESSOR,
    SPECIAL,
    TEMPLATE,
    TOKENIZER,
    read_end_tokens,
    read_object,
    read_special_tokens,
    read_template,
)
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.tokenizer import load_tokenizer
from justright.checkpoint.writer import CheckpointWriter
from justright.errors import UsageError
from justright.files import by_number, copy_companions, save_tensors, write_durably
from justright.model.matrices import expand, matrices
from justright.model.skeleton import skeleton
from justright.provenance import Provenance

PADDED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Uniform ranks that serving engines accept (vLLM's ``max_lora_rank``)."""

Ranks = Mapping[str, int]
"""``layers.INDEX.NAME`` -> rank."""


@dataclass(frozen=True, slots=True)
class Factors:
    """One PEFT target: ``B @ A`` of a linear module, or of all experts of a stack.

    Attributes:
        target: Module path, or the stack's parameter path.
        rank: Rank of each matrix.
        a: ``[rank, in]``; for a stack ``[experts * rank, in]``.
        b: ``[out, rank]``; for a stack ``[out, rank * experts]``, ranks outermost.
        stacked: Whether it is a stack.
    """

    target: str
    rank: int
    a: Tensor
    b: Tensor
    stacked: bool = False

    def parameter(self, moe: bool) -> str | None:
        """The parameter that PEFT must wrap instead of a module; None if it can wrap the module.

        In families with experts, PEFT mistakes the dense layers' projections for experts of an older release and
        drops them silently; it keeps them if they are named as parameters.
        """
        if self.stacked:
            return self.target
        return (
            f"{self.target}.weight" if moe and self.target.rpartition(".")[2] in _TAKEN_FOR_EXPERTS else None
        )


_TAKEN_FOR_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


def factors_of(pair: Pair, spectra: SpectraFolder, ranks: Ranks, dtype: torch.dtype) -> list[Factors]:
    """Factors of every matrix of rank above 0, in model order; all experts of a stack use their largest rank.

    Raises:
        UsageError: A rank exceeds the directions that the spectra keep.
    """
    found: list[Factors] = []
    stacks: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for key, rank in ranks.items():
        index, name = split_key(key)
        u, s, vt = spectra.factors(index, name, rank)
        root = s.sqrt()
        a, b = (root[:, None] * vt).to(dtype), (-u * root).to(dtype)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise UsageError(
                f"the factors of {name} in layer {index} overflow {dtype}: choose --dtype bfloat16 or float32"
            )
        stem, _, expert = name.partition("#")
        target = module_of(pair, index, stem)
        if expert:
            stacks.setdefault(target, {})[int(expert)] = a, b
        elif rank:
            found.append(Factors(target, rank, a.contiguous(), b.contiguous()))
    swapped = bool(stacks) and _exchanges(pair.slow.checkpoint)
    order = () if pair.slow.architecture.moe is None else pair.slow.architecture.moe.memory.matrices
    # Follow the order of a module's parameters: PEFT nests them in it.
    for target, by_expert in sorted(stacks.items(), key=lambda one: _place(one[0], order)):
        parts = [by_expert[expert] for expert in range(len(by_expert))]
        rank = max(a.shape[0] for a, _ in parts)
        if rank:
            lows = torch.stack([zero_padded(a, rank, 0) for a, _ in parts])
            highs = torch.stack([zero_padded(b, rank, 1) for _, b in parts])
            found.append(_stack(target, rank, *((highs.mT, lows.mT) if swapped else (lows, highs))))
    return found


def _place(target: str, order: Sequence[str]) -> tuple[list[str | int], int]:
    """A stack's module, and its index among the module's parameters."""
    module, _, leaf = target.rpartition(".")
    return by_number(module), [name.rpartition(".")[2] for name in order].index(leaf)


def _stack(target: str, rank: int, a: Tensor, b: Tensor) -> Factors:
    """Convert ``a [experts, rank, in]`` and ``b [experts, out, rank]`` to PEFT's layout for parameters."""
    experts = len(a)
    flat_a = a.reshape(experts * rank, a.shape[-1]).contiguous()
    flat_b = b.permute(1, 2, 0).reshape(b.shape[1], rank * experts).contiguous()
    return Factors(target, rank, flat_a, flat_b, stacked=True)


def _exchanges(slow: Checkpoint) -> bool:
    """Whether PEFT swaps in and out of the stacks: ``[in, out]`` tensors in a module not marked as transposed."""
    moe = slow.spec.architecture.moe
    if moe is None or not moe.memory.transposed:
        return False
    model = skeleton(slow.config, slow.spec, torch.float32)
    name = next(n for n, _ in model.named_modules() if n.endswith(f".{moe.memory.module}"))
    return not getattr(model.get_submodule(name), "is_transposed", False)


def save_adapter(
    pair: Pair,
    spectra: SpectraFolder,
    ranks: Ranks,
    folder: Path,
    dtype: torch.dtype,
    *,
    padded: bool = False,
) -> int:
    """Write a PEFT adapter for the slow model into an existing folder.

    Args:
        pair: The pair; ``slow`` is the base model.
        spectra: Spectra of the pair.
        ranks: Rank of every matrix.
        folder: Output folder.
        dtype: Dtype of the factors.
        padded: Pad every module with zeros to one rank, without patterns, for engines that support only this.

    Returns:
        Bytes of the written factors.

    Raises:
        UsageError: See `factors_of`; or a rank is too large to pad.
    """
    from peft import LoraConfig

    found = factors_of(pair, spectra, ranks, dtype)
    if not found:
        raise UsageError("every matrix has rank 0, so the adapter would be empty: raise --value")
    if padded:
        found = _padded(found)
    moe = pair.slow.architecture.moe is not None
    most = max(one.rank for one in found)
    keys = [(one.parameter(moe) or one.target, one.rank) for one in found]
    patterns = {f"^{re.escape(key)}$": rank for key, rank in keys if rank != most}
    parameters = [name for one in found if (name := one.parameter(moe))]
    config = LoraConfig(
        r=most, lora_alpha=most, rank_pattern=patterns, alpha_pattern=dict(patterns), lora_dropout=0.0, bias="none",
        target_modules=[one.target for one in found if not one.parameter(moe)],
        target_parameters=parameters or None,
        task_type="CAUSAL_LM", base_model_name_or_path=str(pair.paths[0]), inference_mode=True,
    )  # fmt: skip
    config.save_pretrained(str(folder))
    # PEFT keeps the target modules as a set, whose order differs between runs.
    saved = read_object(folder / CONFIG)
    _write(folder / CONFIG, {**saved, "target_modules": sorted(saved["target_modules"])})
    tensors = {}
    for one in found:
        module = _wrapped(one.target, parameters) if one.stacked else one.target
        tensors[f"base_model.model.{module}.lora_A.weight"] = one.a
        tensors[f"base_model.model.{module}.lora_B.weight"] = one.b
    save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    _mode_files(pair, folder)
    return sum(tensor.nbytes for tensor in tensors.values())


def _padded(found: Sequence[Factors]) -> list[Factors]:
    """Pad all factors with zeros to the smallest uniform rank that holds them.

    Raises:
        UsageError: a rank is above the largest of `PADDED_RANKS`.
    """
    most = max(one.rank for one in found)
    rank = next((rank for rank in PADDED_RANKS if rank >= most), None)
    if rank is None:
        raise UsageError(
            f"the largest rank is {most}, but engines that need one rank for all modules take at most "
            f"{PADDED_RANKS[-1]}: lower --value, or choose --form compact"
        )
    return [
        replace(one, rank=rank, a=zero_padded(one.a, rank, 0), b=zero_padded(one.b, rank, 1)) for one in found
    ]


def _wrapped(target: str, stacks: Sequence[str]) -> str:
    """PEFT's path of a parameter's factors; PEFT wraps a module once per parameter, the first innermost."""
    owner = target.rpartition(".")[0]
    own = [name for name in stacks if name.rpartition(".")[0] == owner]
    return owner + ".base_layer" * (len(own) - 1 - own.index(target))


def save_exact(pair: Pair, names: Sequence[str], folder: Path) -> None:
    """Write ``fast - slow`` in float32 for the tensors ``names`` (each has an `exact_name`), for justright only."""
    deltas = {}
    for name in names:
        slow, fast = pair.tensors(name)
        deltas[exact_name(pair, name) or name] = (fast.double() - slow.double()).float().contiguous()
    save_tensors(deltas, folder / EXACT, {"format": "pt"})


def exact_name(pair: Pair, name: str) -> str | None:
    """A tensor's path in memory if it is small and only its own module uses it; None if it cannot be switched.

    Args:
        pair: The pair.
        name: Name from `Pair.residuals`.
    """
    row = pair.slow.architecture
    if not name.startswith("layers."):
        stem = f"{row.disk.stem}."
        return row.memory.stem + "." + name.removeprefix(stem) if name.startswith(f"{stem}norm.") else None
    index, leaf = split_key(name)
    router = () if row.moe is None else (row.moe.router.weight, row.moe.router.bias, *row.moe.router.others)
    biases = () if row.moe is None else row.moe.memory.biases
    apart = (
        () if row.moe is None else (row.moe.router.correction_bias,)
    )  # the block around the router reads it
    small = "norm" in leaf or leaf.endswith(".bias") or leaf in router or leaf in biases
    return f"{row.memory.layer(index)}.{leaf}" if small and leaf not in apart else None


def save_merged(
    pair: Pair, spectra: SpectraFolder, ranks: Ranks, out: Path, factor: float, *, exact: Sequence[str] = (),
    provenance: Provenance | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint of the slow model with the switch merged at scale ``factor``, stacked experts included.

    The chat template is the fast model's if the scale is 1. The tensors ``exact`` become
    ``slow + factor * (fast - slow)``.
    """
    fingerprint = {"merged": [str(path) for path in pair.paths], "ranks": dict(ranks), "factor": factor}
    fingerprint["exact"] = list(exact)
    between = set(exact)
    source = pair.paths[1] if factor == 1 else pair.paths[0]
    with CheckpointWriter(
        out, fingerprint=fingerprint, source=source, expected_bytes=pair.slow.checkpoint.nbytes
    ) as writer:
        for name in pair.slow.other_names():
            tensor = pair.slow.checkpoint.tensor(name)
            writer.add(name, _between(*pair.tensors(name), factor) if name in between else tensor)
        for index in range(pair.layers):
            state = pair.slow.read(index)
            for name in [n for n in state if f"layers.{index}.{n}" in between]:
                state[name] = _between(*pair.tensors(f"layers.{index}.{name}"), factor)
            for matrix in expand(matrices(pair.slow.spec, index), state):
                weight = state[matrix.name] = state[matrix.name].clone()
                rows = matrix.rows(weight)
                parts = [(f"{matrix.name}#{e}", rows[e]) for e in range(len(rows))] if matrix.stacked else []
                for name, part in parts or [(matrix.name, rows)]:
                    rank = ranks.get(f"layers.{index}.{name}", 0)
                    if rank:
                        u, s, vt = spectra.factors(index, name, rank)
                        part.copy_((part.float() - factor * (u * s) @ vt).to(part.dtype))
                        if not part.isfinite().all():
                            raise UsageError(
                                f"{name} of layer {index} overflows {part.dtype}: choose another --factor"
                            )
            for name, tensor in pair.slow.write(index, state).items():
                writer.add(name, tensor)
        return writer.finish(pair.slow.checkpoint.config, provenance=provenance)


def _between(slow: Tensor, fast: Tensor, factor: float) -> Tensor:
    """Return ``slow + factor * (fast - slow)`` in the inputs' dtype."""
    if factor == 0:
        return slow
    return (slow.double() + factor * (fast.double() - slow.double())).to(slow.dtype)


def refuse_stacked(pair: Pair) -> None:
    """Validate that a padded adapter can name each matrix of the pair separately.

    Raises:
        UsageError: The pair has stacked experts.
    """
    if any(matrix.stacked for index in range(pair.layers) for matrix in matrices(pair.slow.spec, index)):
        raise UsageError(
            "the pair has stacked experts, and engines that need one rank for all modules disagree on their names: "
            "choose --form compact (PEFT, justright) or --form merged (any engine)"
        )


def split_key(key: str) -> tuple[int, str]:
    """``layers.3.mlp.up_proj.weight`` -> ``(3, "mlp.up_proj.weight")``."""
    _, index, name = key.split(".", 2)
    return int(index), name


def module_of(pair: Pair, index: int, name: str) -> str:
    """Module path in a PEFT adapter."""
    return f"{pair.slow.architecture.memory.layer(index)}.{name.removesuffix('.weight')}"


def zero_padded(tensor: Tensor, rank: int, axis: int) -> Tensor:
    """Pad the rank axis with zeros up to ``rank``."""
    shape = list(tensor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis).contiguous()


def _mode_files(pair: Pair, folder: Path) -> None:
    """Write the tokenizer with the fast model's template and special tokens, and its generation config."""
    slow, fast = pair.paths
    copy_companions(slow, folder)
    for name in ("README.md", TEMPLATE, PROCESSOR, SPECIAL, GENERATION):
        (folder / name).unlink(missing_ok=True)
    tokenizer = load_tokenizer(fast)
    template = read_template(fast)
    if template is not None:
        write_durably(folder / TEMPLATE, template.encode())
    own = tokenizer.eos_token_id
    ends = read_end_tokens(fast) or ([] if own is None else [own])
    if ends:
        _write(folder / GENERATION, {**read_object(fast / GENERATION), "eos_token_id": sorted(ends)})
    special = read_special_tokens(fast)
    settings = {
        name: value for name, value in read_object(folder / TOKENIZER).items() if name != "chat_template"
    }
    _write(folder / TOKENIZER, {**settings, **special})


def _write(file: Path, content: dict[str, Any]) -> None:
    write_durably(file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

"""Loads a local checkpoint as a transformers model; every weight comes from the files, none is random."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError, ResourceError, SlowerWarning, is_out_of_memory
from justright.kernels.embedding import QuantisedEmbedding
from justright.kernels.quantised import Blocks, QuantisedLinear, available
from justright.model.skeleton import assemble

_NAMED = 3


def load_model(
    path: Path | Checkpoint, *, dtype: torch.dtype, device: torch.device, **options: Any
) -> PreTrainedModel:
    """Load a checkpoint's causal language model; ``options`` go to transformers.

    `assemble` builds sparse containers, GGUF files (their blocks as floats), and models with different numbers of
    experts per layer.

    Raises:
        CheckpointError: transformers cannot read it, or tensors are missing or differ in shape from the config.
        ResourceError: the weights do not fit the device.
    """
    with Checkpoint.open(path) as checkpoint:
        if checkpoint.packed or checkpoint.gguf is not None or checkpoint.spec.is_uneven:
            return assemble(checkpoint, dtype=dtype, device=device, **options)
        path = checkpoint.path
    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # missing or mismatched tensors raise our own errors
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, with the shapes
            output_loading_info=True,
            **options,
        )
        _check_whole(path, found["missing_keys"], found["mismatched_keys"])
    except CheckpointError:
        raise
    except Exception as error:  # transformers reads several third-party files without validation
        _refuse_no_memory(error, path, dtype, torch.device("cpu"))
        raise CheckpointError(f"transformers cannot load {path}: {type(error).__name__}: {error}") from error
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
    try:
        return model.to(device)
    except (
        RuntimeError,
        MemoryError,
    ) as error:  # other kinds: a fault of the device, not of the checkpoint
        _refuse_no_memory(error, path, dtype, device)
        raise


def load_blocks(checkpoint: Checkpoint, **options: Any) -> PreTrainedModel:
    """Load a GGUF file's model on the CPU in float32, with its matrices and its embedding in their blocks.

    The blocks are the mapped file, so that they take memory of their own only where rows are reordered. Tensors that
    the file holds as plain values, and stacked experts, are float32. ``options`` go to transformers.

    Raises:
        CheckpointError: tensors are missing or differ in shape from the config.
    """
    cpu = torch.device("cpu")
    modules = partial(_block_modules, checkpoint)
    return assemble(checkpoint, dtype=torch.float32, device=cpu, modules=modules, **options)


def runs_blocks(checkpoint: Checkpoint, fast: bool) -> bool:
    """Whether the kernels for quantised blocks can be used; warns if they cannot."""
    if fast:
        return available()
    warnings.warn(
        f"The quantised weights of {checkpoint.path.name} run as plain floats, which saves neither time nor memory: "
        "the kernels for their blocks need float32 on a CPU, and packed CPU kernels",
        SlowerWarning,
        stacklevel=2,
    )
    return False


def _block_modules(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of an empty model whose weights are in blocks: path -> what replaces it."""
    spec, found = checkpoint.spec, dict[str, nn.Module]()
    head = spec.architecture.disk.head.removesuffix(".weight")
    for path in (*(linear.name for linear in spec.linears), head):
        if (blocks := _blocks(checkpoint, model, path)) is not None:
            bias = f"{path}.bias"
            values = checkpoint.tensor(bias).float() if bias in checkpoint else None
            found[path] = QuantisedLinear(blocks, values)
    embedding = spec.architecture.disk.embedding.removesuffix(".weight")
    old = model.get_submodule(embedding)
    scale = getattr(old, "embed_scale", None)
    if type(old) is nn.Embedding or isinstance(scale, torch.Tensor):
        blocks = _blocks(checkpoint, model, embedding)
        if blocks is not None:
            found[embedding] = QuantisedEmbedding(blocks, scale)
            if spec.tied:
                found[head] = QuantisedLinear(blocks, None)
    return found


def _blocks(checkpoint: Checkpoint, model: nn.Module, path: str) -> Blocks | None:
    """The blocks of a module's weight, if the checkpoint has them, in the module's shape."""
    name = f"{path}.weight"
    blocks = checkpoint.blocks(name) if name in checkpoint else None
    if blocks is not None:
        expected, found = model.get_parameter(name).shape, (len(blocks.data), blocks.columns)
        _check_whole(checkpoint.path, (), [(name, found, expected)] if found != expected else ())
    return blocks


def _refuse_no_memory(error: Exception, path: Path, dtype: torch.dtype, device: torch.device) -> None:
    if is_out_of_memory(error):
        raise ResourceError(f"not enough memory on {device} for the weights of {path} in {dtype}") from error


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module below the head (transformers' ``base_model``; some classes name it differently)."""
    base: nn.Module = model.base_model
    return model.get_submodule("model") if base is model else base


def _check_whole(path: Path, missing: Collection[str], mismatched: Collection[tuple[str, Any, Any]]) -> None:
    """Validate that a checkpoint fills the model that its config describes."""
    if missing:
        names = sorted(missing)
        raise CheckpointError(
            f"{path} lacks {len(names)} tensor{'s' * (len(names) > 1)} that its config.json requires: "
            f"{', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}. The config and the weights do not "
            "belong together, or the weights are incomplete: fetch both again from one revision"
        )
    if mismatched:
        name, found, expected = min(mismatched)
        raise CheckpointError(
            f"the tensor {name} of {path} has shape {list(found)}, but config.json requires {list(expected)} "
            f"({len(mismatched)} tensors differ). The config and the weights do not belong together: fetch both again "
            "from one revision"
        )

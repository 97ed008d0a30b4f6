"""Validate that tensors hold no NaN or infinite values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from justright.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from justright.checkpoint.reader import Checkpoint


def check_finite(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Read every floating-point tensor once.

    Args:
        tensors: Name -> tensor, of any shape and dtype.
        where: Their file or folder, for the message.

    Raises:
        CheckpointError: A tensor holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        wide = tensor.float() if tensor.itemsize == 1 else tensor  # float8 has no minimum in torch
        for number in map(float, wide.aminmax()):  # a NaN anywhere makes both NaN
            if not math.isfinite(number):
                raise CheckpointError(
                    f"{where}: the tensor {name} holds {number}; only finite numbers are allowed. Fetch or make the "
                    "file again"
                )


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory.

    Raises:
        CheckpointError: it is missing or damaged, or a number in it is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: fetch or copy its whole folder again") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    check_finite(tensors, file)
    return tensors


def check_finite_weights(checkpoint: Checkpoint) -> None:
    """`check_finite` for all tensors of a checkpoint, one in memory at a time.

    Raises:
        CheckpointError: A value is not finite, or a file cannot be read.
    """
    from justright.kernels.gguf_blocks import scales_are_finite

    for name in checkpoint:
        file, blocks = checkpoint.info(name).file, checkpoint.blocks(name)
        if blocks is None:
            check_finite({name: checkpoint.tensor(name, copy=True)}, file)
        elif not scales_are_finite(blocks.data, blocks.type):
            raise CheckpointError(
                f"{file}: the tensor {name} holds NaN or infinite numbers; only finite numbers are allowed. Fetch or "
                "make the file again"
            )

"""`is_out_of_memory` distinguishes running out of memory from torch's other RuntimeErrors."""

from __future__ import annotations

import pytest
import torch

from justright.errors import is_out_of_memory


def test_torch_s_own_cpu_allocator_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("The expanded size of the tensor (3) must match the existing size (4)"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)

"""The drafters' matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Product:
    """``x @ weight.T`` for a few rows, float32 in and out; packed by oneDNN on a CPU.

    Args:
        weight: ``[out, in]``.
        dtype: of the weight and the product.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        weight = weight.to(dtype).contiguous()
        self.packed = weight.device.type == "cpu" and bool(torch._C._has_mkldnn)
        self.weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight, 8) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """``x [rows, in]`` to ``[rows, out]``."""
        x = x.to(self.dtype)
        if self.packed:
            found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
            return found.float()
        return F.linear(x, self.weight).float()

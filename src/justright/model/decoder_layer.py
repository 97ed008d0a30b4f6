"""Convert one decoder layer's tensors between a checkpoint's names and layout and those in memory, bit for bit.

Checkpoints store experts separately, transformers stacks them, and router names differ. The architecture table
describes both layouts. The conversion only moves data, so reading and writing back gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from justright.architectures.schema import ExpertLayout
from justright.architectures.spec import ModelSpec
from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
"""Name in memory, relative to the layer (``mlp.experts.down_proj``) -> tensor."""


class LayerFormat:
    """Reads and writes the decoder layers of one checkpoint.

    Args:
        checkpoint: An open checkpoint of a family in the architecture table.

    Raises:
        UnsupportedModelError: The family is unknown, or the weights are quantised.
        CheckpointError: A layer's matrices are missing.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.architecture = self.spec.architecture
        self._names: dict[int, list[str]] = {index: [] for index in range(self.spec.num_layers)}
        refuse_quantised(checkpoint)
        check_layers(checkpoint.path, self.spec, checkpoint)
        stem = f"{self.architecture.disk.stem}.layers."
        for name in checkpoint:
            if name.startswith(stem):
                number = name.removeprefix(stem).split(".", 1)[0]
                if number.isdigit() and int(number) in self._names:
                    self._names[int(number)].append(name)

    def disk_names(self, index: int) -> list[str]:
        """Names of layer ``index``'s tensors on disk, in disk order."""
        return self._names[index]

    def other_names(self) -> list[str]:
        """Names of all tensors outside the decoder layers."""
        of_layers = {name for names in self._names.values() for name in names}
        return [name for name in self.checkpoint if name not in of_layers]

    def expert_names_beyond(self) -> list[str]:
        """Names of routed experts' tensors outside the decoder layers (multi-token prediction).

        DeepSeek-V3 and GLM store them as layers after the last one, other families under ``mtp``.
        """
        return [name for name in self.other_names() if ".experts." in name]

    def read(self, index: int, skip: Collection[str] = ()) -> State:
        """Read layer ``index`` in its memory layout and the checkpoint's dtype; the caller may change it in place.

        Separately stored experts are stacked while reading, so memory holds only this layer. ``skip`` has full names on
        disk that are left out.

        Raises:
            CheckpointError: A tensor is missing or cannot be read.
        """
        prefix = self.architecture.disk.layer(index) + "."
        names = {name.removeprefix(prefix): name for name in self.disk_names(index) if name not in skip}
        moe = self.architecture.moe if self.spec.experts[index] else None
        count, experts = 0, dict[str, None]()
        if moe is not None and moe.memory.stacked and not moe.disk.stacked:
            while moe.disk.down.format(e=count) in names:
                count += 1
            experts = {name.format(e=expert): None for expert in range(count) for name in moe.disk.matrices}
        if missing := [name for name in experts if name not in names]:
            raise CheckpointError(
                f"{self.checkpoint.path} lacks {missing[0]} in a layer of {count} experts: fetch the checkpoint again"
            )

        def read(name: str) -> Tensor:
            return self.checkpoint.tensor(names[name], copy=True)

        state = {name: read(name) for name in names if name not in experts}
        if moe is not None:
            for disk, memory in zip(moe.router_disk.names, moe.router.names, strict=True):
                if disk in state:
                    state[memory] = state.pop(disk)
        if moe is not None and experts:
            _stack(state, moe.disk, moe.memory, count, read)
        return state

    def router_weight(self, index: int) -> Tensor:
        """Read only the router rows ``[num_experts, hidden_size]`` of layer ``index``.

        Raises:
            CheckpointError: The layer has no router.
        """
        moe, prefix = self.architecture.moe, self.architecture.disk.layer(index)
        assert moe is not None
        names = [f"{prefix}.{router.weight}" for router in (moe.router_disk, moe.router)]
        return self.checkpoint.tensor(next((n for n in names if n in self.checkpoint), names[0]), copy=True)

    def write(self, index: int, state: State) -> State:
        """Inverse of `read`: return tensors by full name on disk; the number of experts may have changed."""
        prefix = self.architecture.disk.layer(index)
        out = dict(state)
        if self.spec.experts[index]:
            moe = self.architecture.moe
            assert moe is not None
            own = set(self.disk_names(index))
            stacked = f"{prefix}.{moe.memory.down}" in own
            if moe.memory.stacked and not moe.disk.stacked and not stacked:
                _unstack(out, moe.memory, moe.disk)
            for disk, memory in zip(moe.router_disk.names, moe.router.names, strict=True):
                if memory in out and f"{prefix}.{memory}" not in own:
                    out[disk] = out.pop(memory)
        return {f"{prefix}.{name}": tensor for name, tensor in out.items()}


def check_layers(path: Path, spec: ModelSpec, names: Iterable[str]) -> None:
    """Validate that every layer's matrices exist; name prefixes before ``layers`` vary and are ignored.

    Args:
        path: Path for the message.
        spec: Of the model.
        names: Names of the tensors on disk.

    Raises:
        CheckpointError: A layer's matrices are missing.
    """
    found = {name.partition("layers.")[2] for name in names}
    wanted = [f"{module.name}.weight" for module in spec.linears]
    missing = [name for name in wanted if name.partition("layers.")[2] not in found]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {len(wanted)} matrices that its config.json requires, such as "
            f"{missing[0]}: the weights are incomplete, or of another model. Fetch the checkpoint again"
        )


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Validate that the weights can be pruned or decomposed.

    Raises:
        UnsupportedModelError: The weights are quantised.
    """
    method = (checkpoint.config.get("quantization_config") or {}).get("quant_method")
    packed = next((name for name in checkpoint if not checkpoint.dtype(name).startswith(("F16", "F32", "F64", "BF16"))
                   and name.endswith(("weight", "_blocks", "weight_packed", "qweight"))), None)  # fmt: skip
    if method is None and packed is None:
        return
    what = f"quantised ({method})" if method else f"quantised ({packed} is {checkpoint.dtype(packed or '')})"
    raise UnsupportedModelError(
        f"the weights of {checkpoint.path} are {what}; allowed: float32, bfloat16, float16. Give the unquantised "
        "checkpoint, or dequantise this one with transformers: from_pretrained(DIR, "
        "quantization_config=...(dequantize=True)).save_pretrained(NEW_DIR)"
    )


def _stack(
    state: State, disk: ExpertLayout, memory: ExpertLayout, count: int, read: Callable[[str], Tensor]
) -> None:
    """Add transformers' stacked tensors of ``count`` separately stored experts."""
    import torch

    gates = (disk.gate,) if disk.fused else (disk.gate, disk.up)
    for name, parts in ((memory.gate, gates), (memory.down, (disk.down,))):
        for expert in range(count):
            one = torch.cat([read(part.format(e=expert)) for part in parts])
            if expert == 0:
                state[name] = one.new_empty(count, *one.shape)
            if (one.shape, one.dtype) != (state[name].shape[1:], state[name].dtype):
                raise CheckpointError(
                    f"the checkpoint is damaged: {parts[0].format(e=expert)} has another shape or dtype than the same "
                    "matrix of expert 0. Fetch it again"
                )
            state[name][expert] = one


def _unstack(state: State, memory: ExpertLayout, disk: ExpertLayout) -> None:
    """The inverse of `_stack`, in place."""
    gate_up, down = state.pop(memory.gate), state.pop(memory.down)
    for expert in range(len(down)):
        if disk.fused:
            state[disk.gate.format(e=expert)] = gate_up[expert]
        else:
            gate, up = gate_up[expert].chunk(2)
            state[disk.gate.format(e=expert)] = gate
            state[disk.up.format(e=expert)] = up
        state[disk.down.format(e=expert)] = down[expert]

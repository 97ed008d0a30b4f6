"""Build transformers' own model of a checkpoint without weights, and fill it with weights from our readers.

This covers cases that stock loading cannot: layers with different numbers of experts, sparsely stored weights, and
models that are never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from justright.architectures.schema import Architecture
from justright.architectures.spec import ModelSpec
from justright.architectures.uneven_experts import with_experts
from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError
from justright.model.decoder_layer import LayerFormat, State


def skeleton(config: dict[str, Any], spec: ModelSpec, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Build the causal language model of a ``config.json``: parameters on the meta device, other buffers real.

    Args:
        config: Content of a ``config.json``, uneven or not.
        spec: Its spec.
        dtype: Dtype of the parameters.
        options: Options for transformers' ``from_config``.
    """

    def evenly(count: int) -> PreTrainedModel:
        return _empty(with_experts(config, spec, dict.fromkeys(spec.moe_layers, count)), dtype, options)

    model = evenly(spec.num_experts)
    for count in sorted(set(spec.experts) - {0, spec.num_experts}):
        mine, theirs = decoder_layers(model, spec), decoder_layers(evenly(count), spec)
        for index in (i for i, n in enumerate(spec.experts) if n == count):
            mine[index] = theirs[index]
    return model


def assemble(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    modules: Callable[[PreTrainedModel], Mapping[str, nn.Module]] = lambda _: {},
    **options: Any,
) -> PreTrainedModel:
    """Load the whole model of a checkpoint that stock loading cannot read, one weight at a time.

    Args:
        checkpoint: The checkpoint.
        dtype: Of the parameters.
        device: Of the parameters.
        modules: For the empty model, gives paths -> modules that are ready; their weights, of the same path on disk,
            are not read.
        options: Options for transformers' ``from_config``.

    Raises:
        CheckpointError: A weight is missing or has another shape.
    """
    layers = LayerFormat(checkpoint)
    names = layers.architecture
    model = skeleton(checkpoint.config, checkpoint.spec, dtype, **options)
    made = modules(model)
    for path, module in made.items():
        model.set_submodule(path, module)
    ready = {f"{path}.{kind}" for path in made for kind in ("weight", "bias")}
    for index, layer in enumerate(decoder_layers(model, checkpoint.spec)):
        fill(layer, layers.read(index, skip=ready), device, f"decoder layer {index}")
    expected = {name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor.is_meta}
    for disk in layers.other_names():
        memory = next((n for n in _memory_names(names, disk) if n in expected), None)
        if memory is not None:
            place(model, memory, checkpoint.tensor(disk).to(device, copy=True))
    if names.disk.embedding not in ready:
        model.tie_weights()
    missing = sorted(name for name, tensor in model.named_parameters() if tensor.is_meta)
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} tensors ({', '.join(missing[:3])}): fetch it again"
        )
    for name, buffer in model.named_buffers():
        if buffer.device != device:
            place(model, name, buffer.to(device))
    return model.eval()


def decoder_layers(model: nn.Module, spec: ModelSpec) -> nn.ModuleList:
    """The model's decoder layers; items may be replaced."""
    layers = model.get_submodule(f"{spec.architecture.memory.stem}.layers")
    assert isinstance(layers, nn.ModuleList)
    return layers


def fill(layer: nn.Module, state: State, device: torch.device, what: str) -> None:
    """Fill a layer with copies of the weights in ``state``, in the layer's dtypes, without gradients.

    Raises:
        CheckpointError: A weight is missing or has another shape.
    """
    parameters = {name for name, _ in layer.named_parameters()}
    names = parameters | {name for name in layer.state_dict() if name in state}
    for name in sorted(names):
        if name not in state:
            raise CheckpointError(f"{what} lacks {name}: fetch the checkpoint again")
        old = layer.get_parameter(name) if name in parameters else layer.get_buffer(name)
        if old.device == device and old.shape == state[name].shape:
            old.detach().copy_(state[name])  # already filled: avoid a second copy
        else:
            place(layer, name, state[name].to(device, old.dtype, copy=True))
    for name, buffer in layer.named_buffers():
        if buffer.device != device:
            place(layer, name, buffer.to(device))


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set the parameter or buffer ``name`` of ``module``, in its existing dtype.

    Raises:
        CheckpointError: The shape differs.
    """
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, last)
    if old.shape != tensor.shape:
        raise CheckpointError(
            f"{name} has shape {list(tensor.shape)}, but config.json requires {list(old.shape)}"
        )
    if last in owner._parameters:
        owner._parameters[last] = nn.Parameter(tensor.to(old.dtype), requires_grad=False)
    else:
        owner._buffers[last] = tensor.to(old.dtype)


def _empty(config: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    settings = {key: value for key, value in config.items() if key != "model_type"}
    parsed = AutoConfig.for_model(config["model_type"], **settings)
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(parsed, dtype=dtype, **options)
    for name, tensor in list(model.state_dict(keep_vars=True).items()):
        for part, other in model._get_dtype_plan(dtype).items():  # some families keep routers in float32
            if f".{part}." in f".{name}.":
                tensor.data = tensor.data.to(other)
    return model


def _memory_names(row: Architecture, name: str) -> list[str]:
    """Possible names in memory of a tensor outside the decoder layers."""
    if name == row.disk.head:
        return [row.memory.head]
    if name.startswith(row.disk.stem + "."):
        return [row.memory.stem + name.removeprefix(row.disk.stem)]
    # A vision tower: transformers puts it into `model`, and no longer has a `vision_model` in it.
    return [name, f"model.{name}", f"model.{name.replace('.vision_model.', '.')}"]

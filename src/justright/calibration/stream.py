"""Run a checkpoint's decoder layers one at a time, in order, over the hidden states of all calibration sequences.

The whole model is never in memory. Its skeleton (transformers' own classes, without weights) provides each layer and
its call arguments; the weights of a layer are read just before it runs. Hidden states are on disk between layers (the
system's page cache keeps them in free memory), and an interrupted run resumes from them.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from justright.architectures.spec import ModelSpec
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.shard_writer import MAX_HEADER_ROOM, ShardFile
from justright.errors import UnsupportedModelError, UsageError
from justright.heap import trim
from justright.model.decoder_layer import State
from justright.model.skeleton import fill, place, skeleton


@dataclass(frozen=True, slots=True)
class Stage:
    """A layer in a pipelined run: its ``index``, and a context manager for each of its runs, in its own thread."""

    index: int
    watch: AbstractContextManager[Any] = field(default_factory=nullcontext)


class LayerStream:
    """Runs decoder layers one at a time over all sequences, or pipelined over several devices.

    Life cycle: for each layer in order, call `materialise`, then `measure` any number of times, then `advance` once.
    After `advance` the layer's outputs are on disk in ``folder``, and a new stream on the same folder starts at
    `position`. With several devices, `fly` runs consecutive layers in parallel, each on its own device and on a
    different batch.

    Args:
        checkpoint: An open checkpoint, for its embedding.
        config: Content of the checkpoint's ``config.json``, or of one with fewer experts.
        ids: ``[sequences, length]`` int64.
        folder: Folder for hidden states, at most ``2 * sequences * length * hidden_size * 4`` bytes.
        device: Device of the layers; several are separated by commas, ``cuda:0,cuda:1``.
        dtype: Dtype in which the layers run.
        rows: Sequences per batch.

    Raises:
        UnsupportedModelError: transformers has no class for the family.
        UsageError: There are no sequences.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: dict[str, Any],
        ids: Tensor,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        rows: int = 1,
    ) -> None:
        self.spec = ModelSpec.of(config)
        check_runs(self.spec)
        if ids.ndim != 2 or ids.numel() == 0:
            raise UsageError("there are no calibration sequences: give calibration texts")
        self.ids, self.rows = ids, rows
        self.devices = [torch.device(name) for name in device.split(",")]
        self.dtype = dtype
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._layers, self._calls = self._skeleton(checkpoint, config)
        self.position = self._resume(checkpoint)

    def device(self, index: int) -> torch.device:
        """Device of layer ``index``."""
        return self.devices[index % len(self.devices)]

    def materialise(self, index: int, state: State) -> nn.Module:
        """Build decoder layer ``index`` with the weights of ``state`` on its device, without gradients.

        Raises:
            CheckpointError: A weight is missing or has another shape.
        """
        layer = self._layers[index]
        fill(layer, state, self.device(index), f"decoder layer {index}")
        return layer.eval()

    def release(self, index: int) -> None:
        """Free the layer's weights."""
        self._layers[index].to("meta")
        trim()

    @torch.inference_mode()
    def measure(self, index: int, *, at: int | None = None) -> None:
        """Run layer ``index`` over all sequences and discard its outputs (hooks see all of them).

        Args:
            index: Index of the layer.
            at: Use the inputs of layer ``at`` instead of its own, for timing.
        """
        for hidden in self._inputs(index if at is None else at):
            self._call(index, hidden)

    def fly(self, stages: Sequence[Stage], kept: int, before: Callable[[], None] = lambda: None) -> None:
        """Run consecutive layers over all sequences as a pipeline: each layer is one batch after the layer before it.

        Args:
            stages: Consecutive layers; the first is at `position`.
            kept: Stage whose outputs become the next inputs; outputs of later stages are discarded.
            before: See `advance`.
        """
        first = stages[0].index
        outputs = (out[kept] for out in self._in_flight(stages))
        self._store(first + kept + 1, (out for out in outputs if out is not None), before)
        self._file(first).unlink(missing_ok=True)
        self.position = first + kept + 1

    def _in_flight(self, stages: Sequence[Stage]) -> Iterator[list[Tensor | None]]:
        """Yield all stages' outputs at each pipeline step; None before a stage's first batch and after its last."""
        first, drain = stages[0].index, [None] * (len(stages) - 1)
        if not drain:
            yield from ([self._fly(stages[0], hidden)] for hidden in self._inputs(first))
            return
        lanes: list[Tensor | None] = [None] * len(stages)
        with ThreadPoolExecutor(len(stages)) as pool:
            for batch in itertools.chain(self._inputs(first), drain):
                lanes = list(pool.map(self._fly, stages, [batch, *lanes[:-1]]))
                yield lanes

    def _fly(self, stage: Stage, hidden: Tensor | None) -> Tensor | None:
        if hidden is None:
            return None
        with torch.inference_mode(), stage.watch:  # both apply to this thread only
            return self._call(stage.index, hidden)

    def discard(self) -> None:
        """Remove the hidden states from disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, index: int, hidden: Tensor) -> Tensor:
        device = self.device(index)
        call = self._calls[len(hidden)][index]
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), call)
        out = self._layers[index](hidden.to(device), *args, **kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def _inputs(self, index: int) -> Iterator[Tensor]:
        with safe_open(self._file(index), framework="pt", device="cpu") as file:
            for number in range(-(-len(self.ids) // self.rows)):
                yield file.get_tensor(str(number)).to(self.device(index))

    def _store(self, index: int, batches: Iterator[Tensor], before: Callable[[], None]) -> None:
        """Write ``hidden-INDEX`` atomically."""
        partial = self.folder / "partial"
        file = ShardFile(partial, room=MAX_HEADER_ROOM, metadata={})
        try:
            for number, batch in enumerate(batches):
                file.append(str(number), batch)
            file.complete()
        except BaseException:
            file.abandon()
            raise
        before()
        partial.replace(self._file(index))

    def _file(self, index: int) -> Path:
        return self.folder / f"hidden-{index:05d}.safetensors"

    def _resume(self, checkpoint: Checkpoint) -> int:
        """Return the layer to resume with; embed the sequences if the folder is empty."""
        found = sorted(self.folder.glob("hidden-*.safetensors"))
        if not found:
            self._store(0, self._embedded, lambda: None)
            found = [self._file(0)]
        del self._embedded
        return int(found[-1].stem.removeprefix("hidden-"))

    def _skeleton(
        self, checkpoint: Checkpoint, config: dict[str, Any]
    ) -> tuple[list[nn.Module], dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]]]:
        """Return the layers without weights, and their call arguments for each batch size."""
        row = self.spec.architecture
        # One product per expert, which `Watch` can observe.
        options = {"experts_implementation": "eager"} if row.moe is not None else {}
        model = skeleton(config, self.spec, self.dtype, **options)
        decoder = model.get_submodule(row.memory.stem)
        layers = list(decoder.layers)
        recorders = [_Recorder(layer) for layer in layers]
        decoder.layers = nn.ModuleList(recorders)
        decoder.norm = nn.Identity()
        embedding = checkpoint.tensor(row.disk.embedding, copy=True)
        place(decoder.embed_tokens, "weight", embedding.to(self.devices[0], self.dtype))
        del embedding  # the original dtype is no longer needed
        for name, buffer in decoder.named_buffers():
            if not buffer.is_meta:
                place(decoder, name, buffer.to(self.devices[0]))

        def embed(batch: Tensor) -> Tensor:
            with torch.inference_mode():
                out: Tensor = decoder(input_ids=batch.to(self.devices[0]), use_cache=False).last_hidden_state
            return out

        calls = {}
        rest = len(self.ids) % self.rows
        for count in {min(self.rows, len(self.ids))} | ({rest} if rest else set()):
            embed(self.ids[:count])
            calls[count] = [recorder.call for recorder in recorders]
        self._embedded = (embed(batch) for batch in torch.split(self.ids, self.rows))
        return layers, calls


def check_runs(spec: ModelSpec) -> None:
    """Validate that the family's layers can run.

    Raises:
        UnsupportedModelError: transformers has no class for it.
    """
    if not spec.architecture.stock:
        raise UnsupportedModelError(
            f"transformers has no class for {spec.architecture.family}, so it cannot be calibrated: use criteria that "
            "need no calibration (--criterion router, --weights magnitude)"
        )


class _Recorder(nn.Module):
    """Replaces a layer, records its call arguments, and returns its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Some models read attributes of their layers while they prepare masks and positions.
        for name, value in vars(layer).items():
            if not name.startswith("_") and name not in vars(self):
                object.__setattr__(self, name, value)
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call = (args, kwargs)
        return hidden

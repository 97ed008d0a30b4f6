"""The verifier: one forward pass over a step's tokens, chains or trees, for several sequences at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from justright.adapter.apply import AppliedSwitch
from justright.architectures.spec import ModelSpec
from justright.checkpoint.reader import Checkpoint
from justright.engine.attention import ATTENTION_NAME, StepPlan, attention
from justright.engine.kv_cache import KVCache
from justright.engine.loading import decoder_of, load_blocks, load_model, runs_blocks
from justright.engine.step import StepInput, StepOutput, rows_of, tree_shape
from justright.engine.visibility import SequenceInput
from justright.errors import ResourceError, UsageError
from justright.kernels import packed as kernels
from justright.kernels.quantised import AsFloats, Weights

CpuKernels = Literal["packed", "plain"]
CacheKind = Literal["grow", "static", "trimmed"]

_STATIC_SIZES = (1, 2, 4, 8, 16, 32, 64)

AttentionInterface.register(ATTENTION_NAME, attention)


class Verifier:
    """Runs a transformers causal language model with the engine's KV cache, attention and token trees.

    Life cycle: `prefill` a slot, then any number of `step` + `keep`, then `clear`. Each `step` must be followed by a
    `keep` for each of its slots, which discards all other tokens of the step.

    Args:
        model: a stock causal language model; its attention is replaced.
        slots: the maximum number of concurrent sequences.
        cache: "grow", "static" (allocates the whole context, constant shapes), or "trimmed" (the same, but attention
            covers only the part in use: for many sequences of similar length on a CPU).
        max_tokens: the longest sequence; the model's context by default.
        prefill_chunk: tokens per prefill forward.
        fused: the decoder layers can run as fused calls, see `justright.kernels.fused`. Steps do, and with them each
            row of a step has the same bits whatever rows run beside it.

    Raises:
        UnsupportedModelError: a family without a row in the architecture table, or one whose state cannot be
            rolled back.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int = 1,
        cache: CacheKind = "grow",
        max_tokens: int | None = None,
        prefill_chunk: int = 512,
        fused: bool = False,
    ) -> None:
        if model.config._attn_implementation != ATTENTION_NAME:
            model.set_attn_implementation(ATTENTION_NAME)
        self.model = model.eval()
        self.spec = ModelSpec.of(model.config)
        self.prefill_chunk = prefill_chunk
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.cache_kind = cache
        self.max_tokens = min(max_tokens or self.spec.context, self.spec.usable_context)
        self.cache = self._new_cache(slots)
        self.fused = fused and not self.cache.static
        self.switch: AppliedSwitch | None = None
        self.spec_embedding: Tensor | None = None
        """``[hidden_size]``: the embedding of [SPEC] at the first layer; a drafter supplies it."""
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._factors = [0.0] * slots  # adapter scale of each slot's content; a sequence has a single one
        self._last: dict[int, StepInput] = {}

    @classmethod
    def load(
        cls,
        path: Path | Checkpoint,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        cpu_kernels: CpuKernels | None = None,
        weights: Weights | AsFloats | None = None,
        **options: Any,
    ) -> Verifier:
        """Load a local checkpoint; ``options`` go to the constructor.

        Args:
            path: a checkpoint, or its directory.
            dtype: of the weights and the cache.
            device: any torch device.
            cpu_kernels: "packed" or "plain"; None uses packed where available.
            weights: "int8" or "int4" quantises the matrices of the decoder layers and the head; "float" expands the
                blocks of a GGUF file; None: as they are in the files, where the CPU kernels can be used.

        Raises:
            UsageError: packed kernels or quantised weights are requested but not available.
            UnsupportedModelError: see the class.
            CheckpointError: see `load_model`.
            ResourceError: see `load_model`.
        """
        device = torch.device(device)
        packable = kernels.supported(device, dtype)
        if cpu_kernels == "packed" and not packable:
            raise UsageError(
                f"packed CPU kernels need float32 on a CPU, not {dtype} on {device}: "
                "use --cpu-kernels plain, or --dtype float32"
            )
        quantised = None if weights == "float" else weights
        if quantised is not None and (not packable or cpu_kernels == "plain"):
            raise UsageError(
                f"weights {weights!r} need packed CPU kernels in float32, but dtype is "
                f"{str(dtype).removeprefix('torch.')}, device {device} and cpu_kernels {cpu_kernels or 'packed'}. "
                "Use --dtype float32 --device cpu --cpu-kernels packed, and a torch with oneDNN"
            )
        checkpoint, fast = Checkpoint.open(path), packable and cpu_kernels != "plain"
        if weights is None and checkpoint.has_blocks and runs_blocks(checkpoint, fast):
            model = load_blocks(checkpoint, attn_implementation=ATTENTION_NAME)
        else:
            model = load_model(checkpoint, dtype=dtype, device=device, attn_implementation=ATTENTION_NAME)
        fused = fast and kernels.pack(model, quantised)
        return cls(model, fused=fused, **options)

    @property
    def slots(self) -> int:
        """Rows of the cache: the maximum number of concurrent sequences."""
        return self.cache.slots

    def resize(self, slots: int) -> None:
        """Change the number of slots; this clears the cache."""
        self.cache = self._new_cache(slots)
        self._held = [[] for _ in range(slots)]
        self._factors = [0.0] * slots

    def shorten(self, max_tokens: int) -> None:
        """Limit sequences to ``max_tokens``, where memory cannot hold the whole context.

        Raises:
            UsageError: the cache is already allocated.
        """
        if self.cache.static:
            raise UsageError("a static KV cache needs its size: give max_tokens when you create the verifier")
        self.max_tokens = self.cache.max_tokens = min(self.max_tokens, max_tokens)

    def reuse(self, slot: int, token_ids: Sequence[int], factor: float = 0.0) -> int:
        """Truncate slot ``slot`` to the prefix shared with a new prompt, leaving at least one token to run.

        Only tokens run with the same adapter scale are shared: the KV cache of one mode is wrong in another.

        Returns:
            How many tokens of ``token_ids`` the slot holds now; run `prefill` on the rest.
        """
        shared = self.shared(slot, token_ids, factor)
        self.cache.rewind(slot, shared)
        del self._held[slot][shared:]
        return shared

    def shared(self, slot: int, token_ids: Sequence[int], factor: float = 0.0) -> int:
        """How many tokens `reuse` would keep in slot ``slot``."""
        count = 0
        if self._factors[slot] != factor:
            return count
        for held, new in zip(self._held[slot], token_ids[:-1], strict=False):
            if held != new:
                break
            count += 1
        return count

    def prefill(
        self,
        slot: int,
        token_ids: Sequence[int],
        factor: float = 0.0,
        *,
        spec: bool = False,
        states: list[Tensor] | None = None,
    ) -> Iterator[StepOutput | None]:
        """Run a prompt after the content of slot ``slot``, chunk by chunk, and keep all of it.

        ``spec`` runs a [SPEC] after its last token, if it fits in the context. ``states`` receives the states of all
        tokens, ``[chunk, hidden_size]`` per chunk.

        Yields:
            None after each chunk but the last (a place to stop), then the output of the last token.

        Raises:
            UsageError: the prompt is empty.
            ResourceError: the prompt is longer than the context.
        """
        if not token_ids:
            raise UsageError("the prompt is empty: give at least one token")
        total = self.cache.lengths[slot] + len(token_ids)
        if total > self.max_tokens:
            raise ResourceError(
                f"the prompt has {total} tokens; the context holds {self.max_tokens}: shorten the prompt"
            )
        for begin, end in self.prefill_spans(len(token_ids)):
            last = end == len(token_ids)
            chunk = token_ids[begin:end]
            output = self.prefill_one(slot, chunk, factor, last=last, spec=spec, states=states)
            yield output if last else None

    def prefill_spans(self, tokens: int) -> list[tuple[int, int]]:
        """Begin and end of the chunks in which a prompt is run.

        The last token is a chunk of its own where it runs in fused layers: a [SPEC] after it changes none of its bits
        there.
        """
        alone = int(self.fused)
        begins = [*range(0, tokens - alone, self.prefill_chunk), *([tokens - 1] * alone)]
        return list(pairwise([*begins, tokens]))

    def prefill_one(
        self,
        slot: int,
        chunk: Sequence[int],
        factor: float,
        *,
        last: bool,
        spec: bool,
        states: list[Tensor] | None,
    ) -> StepOutput:
        """Run and keep one of the chunks of `prefill`; ``last`` says that it ends the prompt."""
        fits = self.cache.lengths[slot] + len(chunk) < self.max_tokens
        one = StepInput(slot, chunk, factor=factor, spec=int(spec and last and fits))
        with contextlib.nullcontext() if states is None else self._all_states(states):
            [output] = self._forward([one], only_last=True, fused=self.fused and last)
        if states is not None:
            states[-1] = states[-1][: len(chunk)]
        self.keep(slot, range(len(chunk)))
        return output

    def step(self, inputs: Sequence[StepInput]) -> list[StepOutput]:
        """Run one step for several sequences; nothing is kept until `keep`.

        With a static cache every sequence's tokens are padded to one of a few sizes, which limits the number
        of distinct shapes; the inputs are then for slots 0, 1, 2, ... in order.
        """
        if not self.cache.static:
            return self._forward(inputs, fused=self.fused)
        assert [one.slot for one in inputs] == list(range(len(inputs)))
        for one in inputs:
            self.cache.reserve(one.slot, one.rows)
        longest = max(one.rows for one in inputs)
        return self._forward(inputs, next((n for n in _STATIC_SIZES if n >= longest), longest))

    def keep(self, slot: int, path: Sequence[int]) -> None:
        """Accept the nodes ``path`` (ascending, from the root 0) of the last step and discard the others."""
        self.cache.keep(slot, path)
        last = self._last.pop(slot)
        assert not self._held[slot] or self._factors[slot] == last.factor, (
            "give one adapter scale per sequence"
        )
        self._factors[slot] = last.factor
        self._held[slot] += [last.token_ids[node] for node in path]

    def copy(self, source: int, target: int, count: int) -> None:
        """Replace slot ``target``'s sequence by the first ``count`` tokens of slot ``source``'s."""
        self._held[target] = []  # also when memory runs out
        self.cache.copy(source, target, count)
        self._held[target] = self._held[source][:count]
        self._factors[target] = self._factors[source]

    def clear(self, slot: int) -> None:
        """Discard slot ``slot``'s sequence."""
        self.cache.clear(slot)
        self._held[slot] = []

    def release(self, slot: int) -> None:
        """Discard slot ``slot``'s sequence and free its memory."""
        self.cache.release(slot)
        self._held[slot] = []

    def swap(self, one: int, other: int) -> None:
        """Exchange the sequences of two slots."""
        self.cache.swap(one, other)
        self._held[one], self._held[other] = self._held[other], self._held[one]
        self._factors[one], self._factors[other] = self._factors[other], self._factors[one]

    def time_step(self, tokens: int, past: int, slot: int = 0) -> float:
        """Seconds of a step of ``tokens`` chain tokens after ``past`` cached ones (arbitrary contents).

        Slot ``slot`` must be empty, and is empty afterwards.
        """
        assert self.cache.lengths[slot] == 0, "timing would overwrite a sequence"
        self.cache.reserve(slot, past + tokens)
        self.cache.fill(slot, past)
        try:
            begin = time.perf_counter()
            self.step([StepInput(slot, [0] * tokens)])
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - begin
        finally:
            self.clear(slot)

    def _new_cache(self, slots: int) -> KVCache:
        layers = self.spec.num_layers
        static, trimmed = self.cache_kind != "grow", self.cache_kind == "trimmed"
        return KVCache(layers, slots, self.max_tokens, static=static, trimmed=trimmed)

    @torch.inference_mode()
    def _forward(
        self,
        inputs: Sequence[StepInput],
        size: int | None = None,
        *,
        only_last: bool = False,
        fused: bool = False,
    ) -> list[StepOutput]:
        """Run all sequences' tokens in one flat row, each padded to ``size`` if given."""
        laid_out = [one.laid_out() for one in inputs]
        if size is not None:
            laid_out = [one.padded(size) for one in laid_out]
        # A prompt becomes part of the sequence, but not the [SPEC] after it; the tokens of a step are not yet
        # verified.
        certain = [len(one.token_ids) if only_last else 0 for one in inputs]
        plan = self._plan(laid_out, certain, static=size is not None, fused=fused)
        flat = torch.tensor([[t for one in laid_out for t in one.token_ids]], device=self.device)
        tokens, specs = rows_of(inputs, [run.start for run in plan.runs], only_last=only_last)
        wanted = [row for rows in tokens for row in rows]
        keep = 0 if len(wanted) == flat.shape[1] else torch.tensor(wanted, device=self.device)
        with self._head_input() as captured, self._last_states(specs) as states, self._switched(laid_out):
            logits = self.model(
                input_ids=flat,
                position_ids=plan.positions[None],
                use_cache=False,
                logits_to_keep=keep,
                justright_plan=plan,
            ).logits[0]
        hidden = captured[0][0]
        outputs, begin = [], 0
        for own, spec in zip(tokens, specs, strict=True):
            span = slice(begin, begin + len(own))
            spec_states = states[0][spec] if spec else None
            outputs.append(StepOutput(logits[span], hidden[span], spec_states))
            begin = span.stop
        return outputs

    def _plan(
        self, inputs: Sequence[StepInput], certain: Sequence[int], *, static: bool, fused: bool
    ) -> StepPlan:
        runs = []
        start = 0
        for one, sure in zip(inputs, certain, strict=True):
            count = len(one.token_ids)
            if not static:
                self.cache.reserve(one.slot, count)
            past = self.cache.lengths[one.slot]
            if one.parents is None:
                depths, tree = torch.arange(count), None
            else:
                depths, tree = tree_shape(one.parents)
                tree = tree.to(self.device)
            self._last[one.slot] = one
            # Only padding can lie beyond the context, where some rotary embeddings change for all tokens.
            positions = (depths + past).clamp(max=self.max_tokens - 1)
            runs.append(SequenceInput(one.slot, start, positions.to(self.device), tree, sure))
            start += count
        positions = torch.cat([run.positions for run in runs])
        return StepPlan(
            self.cache,
            runs,
            self.spec.windows,
            positions,
            self.spec.architecture.index_scaled,
            static=static,
            fused=fused,
            adapted=any(one.factor for one in inputs),
        )

    def _switched(self, inputs: Sequence[StepInput]) -> contextlib.AbstractContextManager[None]:
        """A context with the adapter active at each token's scale."""
        if self.switch is None:
            assert not any(one.factor for one in inputs), "no switch is loaded"
            return contextlib.nullcontext()
        return self.switch.rows([one.factor for one in inputs for _ in one.token_ids])

    @contextlib.contextmanager
    def _last_states(self, specs: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
        """Put [SPEC]'s embedding into its rows of the flat step; capture all states ``[rows, hidden_size]``."""
        rows = [row for rows in specs for row in rows]
        states: list[Tensor] = []
        if not rows:
            yield states
            return
        assert self.spec_embedding is not None, "no drafter has set a [SPEC] embedding"
        embedding, index = self.spec_embedding, torch.tensor(rows, device=self.device)

        def replace(_: Any, args: Any, output: Tensor) -> Tensor:
            return output.index_copy(1, index, embedding.to(output.dtype).expand(1, len(rows), -1))

        handle = self.model.get_input_embeddings().register_forward_hook(replace)
        try:
            with self._all_states(states):
                yield states
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _all_states(self, states: list[Tensor]) -> Iterator[None]:
        """Capture the states of all rows, ``[rows, hidden_size]`` per forward."""

        def catch(_: Any, args: Any, output: Any) -> None:
            states.append(output[0][0])

        handle = decoder_of(self.model).register_forward_hook(catch)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _head_input(self) -> Iterator[list[Tensor]]:
        """Capture the input of the head: the hidden states after the final norm."""
        captured: list[Tensor] = []
        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        try:
            yield captured
        finally:
            handle.remove()

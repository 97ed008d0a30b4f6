"""A loaded model on the level of requests: what `LLM`, the server and the commands run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerFast

from justright import __version__
from justright.adapter.adapter import Adapter
from justright.adapter.apply import AppliedSwitch
from justright.engine.chat_modes import Reasoning, RequestBuilder, chat_tokens
from justright.engine.checks import check_prompt
from justright.engine.decode_loop import DecodeLoop
from justright.engine.defaults import Defaults
from justright.engine.detokenizer import tokens_within
from justright.engine.generation import GenerationDefaults, ModeParams
from justright.engine.model_runner import Verifier
from justright.engine.options import EngineOptions, check_nodes
from justright.engine.request import Emission, Request
from justright.engine.sampler import SamplingParams
from justright.engine.step_cost import METHOD, StepCost
from justright.errors import UsageError
from justright.files import cache_folder
from justright.kernels.cpu import processor_name
from justright.speculative.base import Drafter
from justright.speculative.registry import create_drafter

_TUNED_AT = 2048
"""Cached tokens for which the shape of trees is chosen; a step of many rows costs little more after more of them."""
_MOST_ROWS = 256


class LoadedModel:
    """A model, its tokenizer and its drafter. Not thread-safe; one generation at a time (of many sequences)."""

    @classmethod
    def from_parts(
        cls, verifier: Verifier, tokenizer: PreTrainedTokenizerFast | None = None, **parts: Any
    ) -> Self:
        """Of a model that is loaded already; ``parts`` as in `_assemble`."""
        llm = cls.__new__(cls)
        llm._assemble(verifier, tokenizer, **parts)
        return llm

    def _assemble(
        self,
        verifier: Verifier,
        tokenizer: PreTrainedTokenizerFast | None,
        *,
        options: EngineOptions | None = None,
        drafter: Drafter | None = None,
        cost: StepCost | None = None,
        stop_token_ids: frozenset[int] = frozenset(),
        adapter: Adapter | None = None,
        path: Path | None = None,
        defaults: Defaults | None = None,
        generation: GenerationDefaults | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            verifier: the model.
            tokenizer: None for token ids only.
            options: as loaded.
            drafter: proposes draft tokens; None decodes plainly.
            cost: measured step costs; None verifies every draft in full.
            stop_token_ids: the model's end tokens.
            adapter: the switch to the model's fast twin.
            path: the checkpoint, if it has one.
            defaults: how requests run that leave it open; a bundle has its own.
            generation: the sampling settings of ``generation_config.json``, for requests that sample.
        """
        self.options = options or EngineOptions()
        self.defaults = defaults or Defaults()
        self.generation = generation or GenerationDefaults()
        self.verifier = verifier
        self.path = path
        self._warned = False
        self.tokenizer = tokenizer
        self.drafter = drafter
        self.cost = cost
        self.stop_token_ids = stop_token_ids
        self.modes = None if tokenizer is None else RequestBuilder(tokenizer, adapter)
        if adapter is not None and verifier.switch is None:
            verifier.switch = AppliedSwitch(verifier.model, adapter)

    def _speculate(self, path: Path | None) -> None:
        """Measure, or look up, what steps cost here; and let the drafter fit its drafts to it."""
        if self.cost is None:
            self.cost = self.measured_cost(path)
        if self.drafter is not None:
            seconds = self.cost.curve(min(_TUNED_AT, self.verifier.max_tokens // 2), _MOST_ROWS)
            self.drafter.tune(lambda rows: float(seconds[min(rows, _MOST_ROWS) - 1]), self.options.max_draft)

    def chat_prompt(self, messages: Sequence[Mapping[str, str]], **template: Any) -> list[int]:
        """`chat_tokens` with the engine's tokenizer."""
        return chat_tokens(self._need_tokenizer(), messages, **template)

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain prompt, with the special tokens that the tokenizer adds by itself."""
        return tokens_within(self._need_tokenizer(), text)

    def sampling(self, otherwise: SamplingParams | None = None, **given: Any) -> ModeParams:
        """How tokens are chosen: ``given``, else by a bundle's defaults, else by ``generation_config.json``.

        Args:
            otherwise: what holds where none of them says anything; greedy by default, and then the file counts only if
                ``given`` or the bundle has a temperature above 0.
            given: fields of `SamplingParams`.

        Raises:
            UsageError: a value that is not allowed.
        """
        return self.generation.params({**self.defaults.sampling, **given}, otherwise or SamplingParams())

    def request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | ModeParams | None = None,
        *,
        fast: bool = False,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_in_reasoning: bool = False,
        ignore_eos: bool = False,
    ) -> Request:
        """A checked request for a plain prompt, all of whose output is content.

        Args:
            prompt: text (encoded as it is) or token ids.
            params: as they are; or of each mode, from `sampling`; by default ``sampling()``: greedy, or as the bundle
                says.
            fast: whether the fast mode's parameters count.
            max_tokens: instead of that of ``params``; never more than the context has room for.
            stop: a stop string or several, instead of those of ``params``.
            stop_in_reasoning: whether they count in the reasoning of a `conversation` too, and not in content alone.
            ignore_eos: continue after end tokens (benchmarks).

        Raises:
            UsageError: an empty prompt, a bad ``max_tokens``, an unknown token, stop strings without a
                tokenizer.
            ResourceError: the prompt leaves no room in the context.
        """
        self._check_open()
        params = params or self.sampling()
        if isinstance(params, ModeParams):
            params = params.of(fast=fast)
        longest, vocab = self.verifier.max_tokens, self.verifier.spec.vocab_size
        ids = (
            tokens_within(self._need_tokenizer(), prompt, longest)
            if isinstance(prompt, str)
            else list(prompt)
        )
        check_prompt(ids, longest)
        room = longest - len(ids)
        if not all(0 <= token < vocab for token in ids):
            raise UsageError(f"the prompt has token ids outside the vocabulary (0 to {vocab - 1})")
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; allowed: 1 or more")
        stop = tuple(params.stop) if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        if stop:
            self._need_tokenizer()
        return Request(
            ids,
            params,
            min(max_tokens or params.max_tokens or room, room),
            stop,
            frozenset() if ignore_eos else self.stop_token_ids,
            stop_in_reasoning=stop_in_reasoning,
            top_logprobs=params.logprobs,
        )

    def conversation(
        self,
        messages: Sequence[Mapping[str, str]],
        params: SamplingParams | ModeParams | None = None,
        *,
        thinking: Reasoning | None = None,
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Request:
        """A checked request for the next turn of a conversation, by the template of the mode that it runs in.

        Args:
            messages: as `chat_prompt` takes them.
            params: as in `request`; each mode takes its own (one that changes on the way keeps those of its prompt).
            thinking: how much of it; by default as the bundle says, or as the model does by itself.
            template: further arguments of the chat template.
            options: as in `request`.

        Raises:
            UsageError: invalid arguments of `request` or `chat_tokens`; an effort that this model does not support.
            ResourceError: a mode's prompt leaves no room in the context.
        """
        self._need_tokenizer()
        assert self.modes is not None
        settled = partial(self.request, params=params, **options)
        hidden_size = self.verifier.spec.hidden_size
        thinking = thinking or self.defaults.thinking
        limit = self.verifier.max_tokens
        return self.modes.request(messages, thinking, template or {}, settled, hidden_size, limit)

    def stream_requests(self, requests: Sequence[Request]) -> Iterator[Emission]:
        """Run requests, yielding output as it is generated; closing the iterator cancels what is left.

        Raises:
            JustrightError: a request failed; raised when all of them have ended.
        """
        yield from self.loop().run(requests)
        for request in requests:
            if request.error is not None:
                raise request.error

    def generate_request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | ModeParams | None = None,
        **options: Any,
    ) -> Request:
        """Run one prompt to its end; ``options`` as in `request`, errors as in `stream_requests`."""
        [request] = self.generate_requests([self.request(prompt, params, **options)])
        return request

    def generate_requests(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Run requests to their end, as many at once as there are slots; errors as in `stream_requests`."""
        for _ in self.stream_requests(requests):
            pass
        return requests

    def with_draft(self, draft: str, *, adaptive: bool = True, **options: Any) -> Self:
        """The same loaded model with another drafter (and its options); run one of the engines at a time."""
        check_nodes(options, self.options.max_draft)
        drafter = create_drafter(draft, **options)
        if drafter is not None:
            drafter.bind(self.verifier.model, self.path)
        engine = type(self).from_parts(
            self.verifier,
            self.tokenizer,
            options=self.options,
            drafter=drafter,
            cost=self.cost,
            stop_token_ids=self.stop_token_ids,
            adapter=None if self.modes is None else self.modes.adapter,
            path=self.path,
            defaults=self.defaults,
            generation=self.generation,
        )
        if not adaptive:
            engine.cost = None
        elif engine.drafter is not None:
            engine._speculate(self.path)
        return engine

    def measured_cost(self, path: Path | None) -> StepCost:
        """The step costs of this model on this machine: read from the cache folder, or measured and kept there."""
        kept = None if path is None else self._cost_file(path)
        verifier = self.verifier
        windows = tuple(None if window is None else window.size for window in verifier.spec.windows)
        cost = None if kept is None else StepCost.read(kept, windows)
        if cost is None:
            context = verifier.max_tokens
            largest = min(2 * self.options.max_draft, context // 4)
            cost = StepCost.measure(verifier.time_step, context=context, largest=largest, windows=windows)
            if kept is not None and cost.complete:
                with contextlib.suppress(OSError):  # a full disk; it is measured again then
                    cost.save(kept)
        return cost

    def _cost_file(self, path: Path) -> Path:
        weights = [file for ending in ("safetensors", "gguf") for file in sorted(path.glob(f"*.{ending}"))]
        stat = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in weights]
        device = self.verifier.device
        cpu = f"{processor_name()} x {os.cpu_count()}"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
        identity = [
            *(str(path), stat, name, self.verifier.dtype, self.options.cpu_kernels, self.options.weights),
            self.options.cache,
            *(torch.get_num_threads(), torch.__version__, __version__, METHOD, self.options.max_draft),
        ]
        digest = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
        return cache_folder() / "costs" / f"{digest}.json"

    def loop(self, **options: Any) -> DecodeLoop:
        """A decode loop over this engine, one at a time; ``options``: further ones of `DecodeLoop`."""
        return DecodeLoop(
            self.verifier,
            self.tokenizer,
            drafter=self.drafter,
            cost=self.cost,
            max_draft=self.options.max_draft,
            reuse_prefix=self.options.reuse_prefix,
            **options,
        )

    def _need_tokenizer(self) -> PreTrainedTokenizerFast:
        if self.tokenizer is None:
            raise UsageError("this engine has no tokenizer: give token ids, and leave out stop strings")
        return self.tokenizer

    def _check_open(self) -> None:
        if "verifier" not in self.__dict__:
            raise UsageError("this LLM is closed: load the model again")

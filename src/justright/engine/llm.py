"""`LLM`: a model, its tokenizer and the decode loop in a few calls.

with LLM("packaged:smollm2-135m-instruct", draft="suffix") as llm:
    [output] = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=64))
    print(output.text, output.stats.acceptance_length)
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar, cast

import torch

from justright.checkpoint.bundle_manifest import check_bundled_weights
from justright.engine.chat_modes import Reasoning
from justright.engine.checks import end_tokens
from justright.engine.loaded_model import LoadedModel
from justright.engine.model_runner import Verifier
from justright.engine.options import EngineOptions
from justright.engine.output import Output, OutputBuilder, OutputChunk
from justright.engine.prepared import PreparedModel, prepare_model
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.errors import UsageError

Prompt = str | Sequence[int]
"""Text, or token ids."""
Messages = Sequence[Mapping[str, str]]
"""A conversation: ``{"role": ..., "content": ...}`` in turn."""
_Input = TypeVar("_Input")


class LLM(LoadedModel):
    """A loaded model, ready to generate. Not thread-safe; one generation at a time (of many sequences).

    Args:
        model: see `justright.checkpoint.sources.resolve`; or what `prepare_model` gives.
        options: defaults to ``EngineOptions(**changes)``; a bundle fills in what they leave open.
        changes: fields of `EngineOptions`, instead of ``options``.

    Raises:
        JustrightError: any of its kinds; everything cheap is checked before weights are read.
    """

    def __init__(
        self, model: str | PreparedModel, options: EngineOptions | None = None, **changes: Any
    ) -> None:
        if not isinstance(model, PreparedModel):
            if options is not None and changes:
                raise UsageError(f"give options or {', '.join(changes)}, not both")
            model = prepare_model(model, options or EngineOptions(**changes))
        elif options is not None or changes:
            raise UsageError("a prepared model already has its options: give them to prepare_model")
        options, drafter = model.options, model.drafter
        check_bundled_weights(model.checkpoint)
        verifier = Verifier.load(
            model.checkpoint,
            dtype=options.torch_dtype,
            device=options.torch_device,
            cpu_kernels=options.cpu_kernels,
            weights=options.weights,
            slots=options.slots,
            cache=options.cache,
            max_tokens=options.max_context,
            prefill_chunk=options.prefill_chunk,
        )
        if drafter is not None:
            drafter.bind(verifier.model, model.path)
        self._assemble(
            verifier,
            model.tokenizer,
            options=options,
            drafter=drafter,
            stop_token_ids=end_tokens(model.path, model.tokenizer, model.checkpoint.config),
            adapter=model.adapter,
            path=model.path,
            defaults=model.defaults,
            generation=model.generation,
        )
        if drafter is not None and options.adaptive:
            self._speculate(model.path)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Output]:
        """Complete prompts, as many at once as there are slots.

        Args:
            prompts: one prompt or several, each as text or token ids; no chat template is applied.
            params: for all prompts, or one for each; see `sampling` for what it leaves open.

        Returns:
            One output for each prompt, in the order of ``prompts``; a single prompt gives a list of one.

        Raises:
            UsageError: an empty prompt, a token outside the vocabulary, stop strings without a tokenizer.
            ResourceError: a prompt that leaves no room in the context.
        """
        one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        inputs = cast("list[Prompt]", [prompts] if one else list(prompts))
        return self._run([self._checked(prompt, p, None) for prompt, p in _paired(inputs, params)])

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        reasoning: Reasoning | None = None,
    ) -> list[Output]:
        """Answer conversations, by the chat template of the mode that each runs in.

        Args:
            messages: one conversation or several, each a list of ``{"role": ..., "content": ...}``.
            params: as in `generate`.
            reasoning: how much of it; by default as the bundle or the model does by itself.

        Returns:
            One output for each conversation, in the order of ``messages``.

        Raises:
            UsageError: as in `generate`; no chat template; a ``reasoning`` that this model cannot do.
            ResourceError: a conversation that leaves no room in the context.
        """
        one = isinstance(messages, str) or len(messages) == 0 or isinstance(messages[0], Mapping)
        inputs = cast("list[Messages]", [messages] if one else list(messages))
        reasoning = reasoning or self.defaults.thinking
        return self._run([self._checked(talk, p, reasoning) for talk, p in _paired(inputs, params)])

    def stream(
        self,
        prompt: Prompt | Messages,
        params: SamplingParams | None = None,
        *,
        reasoning: Reasoning | None = None,
    ) -> Iterator[OutputChunk]:
        """Complete one prompt, or answer one conversation, chunk by chunk; closing the iterator cancels it.

        The arguments and errors are those of `generate` and `chat`; bad input fails at the call, before the first
        chunk.
        """
        is_chat = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
        if not is_chat and reasoning is not None:
            raise UsageError("reasoning needs a conversation: give a list of messages, or leave it out")
        if is_chat:
            reasoning = reasoning or self.defaults.thinking
        request = self._checked(prompt, params, reasoning)
        builder = OutputBuilder(request)
        return (builder.push(emission) for emission in self.stream_requests([request]))

    def close(self) -> None:
        """Free the model, its cache and its drafter; nothing can be generated afterwards."""
        for name in ("verifier", "drafter", "cost", "modes"):
            self.__dict__.pop(name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(
        self, prompt: Prompt | Messages, params: SamplingParams | None, reasoning: Reasoning | None
    ) -> Request:
        """A request for a prompt, or with ``reasoning`` for a conversation; warns once if the context cuts it."""
        self._check_open()
        params = params or SamplingParams()
        settled = self.sampling(**params.given)
        if reasoning is None:
            request = self.request(cast("Prompt", prompt), settled)
        else:
            request = self.conversation(cast("Messages", prompt), settled, thinking=reasoning)
        if params.max_tokens is not None and request.max_tokens < params.max_tokens and not self._warned:
            self._warned = True
            warnings.warn(
                f"max_tokens is {params.max_tokens}, and after a prompt of {len(request.prompt_ids)} tokens the "
                f"context of {self.verifier.max_tokens} holds {request.max_tokens}: the output ends there with "
                'finish_reason "length" (this warning comes once)',
                RuntimeWarning,
                stacklevel=4,
            )
        return request

    def _run(self, requests: Sequence[Request]) -> list[Output]:
        """The outputs of requests, in their order."""
        builders = {request.id: OutputBuilder(request) for request in requests}
        for emission in self.stream_requests(requests):
            builders[emission.request.id].push(emission)
        return [builders[request.id].output(self._prompt_text(request)) for request in requests]

    def _prompt_text(self, request: Request) -> str | None:
        return None if self.tokenizer is None else str(self.tokenizer.decode(request.prompt_ids))


def _paired(
    inputs: Sequence[_Input], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[tuple[_Input, SamplingParams | None]]:
    """Each of ``inputs`` with its parameters.

    Raises:
        UsageError: a list of parameters of another length.
    """
    if params is None or isinstance(params, SamplingParams):
        return [(one, params) for one in inputs]
    if len(params) != len(inputs):
        raise UsageError(
            f"there are {len(inputs)} prompts and {len(params)} SamplingParams: give one, or one per prompt"
        )
    return list(zip(inputs, params, strict=True))

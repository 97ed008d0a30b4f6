"""Prepares a model in two steps: first everything that can fail cheaply, then the weights.

ready = prepare("packaged:smollm2-135m-instruct", output, {"dtype": "float32"})
ids = ready.tokens([{"role": "user", "content": "Hello"}])   # checked against the context
engine = ready.load()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from justright.architectures.spec import architecture_of
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import Source, check_tokenizer_files, resolve
from justright.cli.options import chosen
from justright.cli.output import Terminal
from justright.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from justright.engine.defaults import Defaults
    from justright.engine.generation import GenerationDefaults, ModeParams
    from justright.engine.llm import LLM
    from justright.engine.options import EngineOptions
    from justright.engine.sampler import SamplingParams

Message = Mapping[str, str]
_DRAFT = "suffix"
"""The drafter if neither the user nor the bundle names one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validated model with its tokenizer loaded, but not its weights.

    Attributes:
        source: location of the model.
        options: options for loading it.
        tokenizer: its tokenizer.
        context: most tokens of a sequence, prompt and answer.
        output: the run's output.
        hidden_size: hidden size of the model.
        defaults: the bundle's defaults.
        generation: the sampling settings of ``generation_config.json``.
    """

    source: Source
    options: EngineOptions
    tokenizer: PreTrainedTokenizerFast
    context: int
    output: Terminal
    hidden_size: int
    defaults: Defaults
    generation: GenerationDefaults

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return self.tokenizer.chat_template is not None

    def tokens(self, prompt: str | Sequence[Message]) -> list[int]:
        """Tokenize a plain prompt, or a conversation with the chat template.

        Raises:
            UsageError: there are no tokens or no template, or the template rejects the conversation.
        """
        from justright.engine.chat_modes import chat_tokens

        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt)["input_ids"])
        else:
            ids = chat_tokens(self.tokenizer, prompt)
        if not ids:
            raise UsageError("the prompt is empty: give at least one token of text")
        return ids

    def check_room(self, ids: Sequence[int], what: str = "the prompt") -> None:
        """Check that a prompt leaves room for at least one token of the answer.

        Raises:
            ResourceError: it does not.
        """
        if len(ids) >= self.context:
            raise ResourceError(
                f"{what} has {len(ids)} tokens; the context holds {self.context}, with at least one for the "
                "answer: shorten it, or use a model with a longer context"
            )

    def load(self) -> LLM:
        """Load the weights.

        Raises:
            JustrightError: any of its kinds.
        """
        from justright.engine.llm import LLM

        with self.output.status(f"loading {self.source.name}"):
            return LLM(str(self.source.path), self.options, tokenizer=self.tokenizer)


def prepare(model: str, output: Terminal, options: Mapping[str, Any]) -> Prepared:
    """Find a model, and validate it and the options without reading a weight; the cheapest checks come first.

    Args:
        model: anything that `justright.checkpoint.sources.resolve` accepts.
        output: the run's output.
        options: fields of `EngineOptions`.

    Raises:
        JustrightError: any of its kinds.
    """
    from justright.speculative.registry import check_drafter

    if (draft := options.get("draft")) is not None:
        check_drafter(draft, **options.get("draft_options", {}))
    source = resolve(model, progress=not (output.quiet or output.json))
    with Checkpoint.open(source.path) as checkpoint:
        config = checkpoint.config
    architecture_of(config)  # before transformers is imported
    check_tokenizer_files(source.path)
    with output.status("starting torch"):
        _quiet_libraries(output)
        from justright.checkpoint.tokenizer import load_tokenizer
        from justright.engine.checks import check_model
        from justright.engine.defaults import settle
        from justright.engine.generation import GenerationDefaults
        from justright.engine.options import EngineOptions
    checked, defaults = settle(EngineOptions(**options), source.path, draft=_DRAFT)
    check_drafter(checked.draft or "none", **checked.draft_options)
    _ = checked.torch_device
    spec = check_model(source.path)
    generation = GenerationDefaults.read(checked, source.path)
    context = min(spec.usable_context, checked.max_context or spec.usable_context)
    tokenizer = load_tokenizer(source.path)
    return Prepared(source, checked, tokenizer, context, output, spec.hidden_size, defaults, generation)


def given_sampling(ctx: typer.Context, ready: Prepared) -> dict[str, Any]:
    """Return the fields of `SamplingParams` that the user set, merged over those of the bundle.

    Raises:
        UsageError: a value is not allowed.
    """
    from justright.engine.sampler import TOKEN_CHOICE, SamplingParams

    names = [name for name in TOKEN_CHOICE if name in ctx.params]
    given = {
        name: value for name in names if (value := chosen(ctx, name, ctx.params[name], None)) is not None
    }
    SamplingParams(**given)  # validates the values
    return {**ready.defaults.sampling, **given}


def sampling_of(ctx: typer.Context, ready: Prepared, otherwise: SamplingParams | None = None) -> ModeParams:
    """Choose and print sampling parameters: the user's, else the bundle's, the model file's, ``otherwise`` (greedy).

    Raises:
        UsageError: a value is not allowed.
    """
    from justright.engine.sampler import SamplingParams

    given = given_sampling(ctx, ready)
    params = ready.generation.params(given, otherwise or SamplingParams())
    for line in ready.generation.lines(given, sampling=not params.slow.greedy):
        ready.output.note(f"note: {line}")
    return params


def _quiet_libraries(output: Terminal) -> None:
    """Turn the libraries' progress bars off unless progress is shown."""
    from transformers.utils import logging

    if output.progress:
        logging.enable_progress_bar()
    else:
        logging.disable_progress_bar()

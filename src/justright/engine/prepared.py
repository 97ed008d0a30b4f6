"""A model up to its weights: found, validated and settled, so that whatever fails cheaply fails first.

`LLM` and the commands that generate load their model through `prepare_model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter
from justright.architectures.spec import ModelSpec
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import check_tokenizer_files, resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.engine.chat_modes import Reasoning, RequestBuilder, chat_tokens
from justright.engine.checks import check_model, read_switch
from justright.engine.defaults import Defaults, settle
from justright.engine.generation import GenerationDefaults
from justright.engine.options import NO_SWITCH, EngineOptions
from justright.speculative.base import Drafter
from justright.speculative.registry import check_drafter, create_drafter


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A validated model with everything but its weights; ``LLM(prepared)`` loads them, once.

    Attributes:
        checkpoint: its files.
        options: as given, and by the bundle where they leave something open.
        defaults: the bundle's defaults.
        generation: the sampling settings of ``generation_config.json``.
        tokenizer: its tokenizer.
        drafter: proposes draft tokens; None decodes plainly.
        adapter: the switch to the fast mode; None if there is none.
    """

    checkpoint: Checkpoint
    options: EngineOptions
    defaults: Defaults
    generation: GenerationDefaults
    tokenizer: PreTrainedTokenizerFast
    drafter: Drafter | None
    adapter: Adapter | None

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.checkpoint.path

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.checkpoint.spec

    @property
    def context(self) -> int:
        """The most tokens of a sequence, prompt and answer."""
        return min(self.options.max_context or self.spec.context, self.spec.usable_context)

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return self.tokenizer.chat_template is not None

    def tokens(self, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Tokenize a plain prompt, or a conversation with the chat template.

        Raises:
            UsageError: there is no template, or it rejects the conversation.
        """
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        return chat_tokens(self.tokenizer, prompt)

    def check_reasoning(self, reasoning: Reasoning) -> None:
        """Check that the model and its switch support the settings.

        Raises:
            UsageError: there is no fast mode, no reasoning or no probe.
        """
        RequestBuilder(self.tokenizer, self.adapter).check(reasoning, self.spec.hidden_size)


def prepare_model(
    model: str | Checkpoint, options: EngineOptions, *, default_draft: str = "none"
) -> PreparedModel:
    """Find a model, and validate it, its parts and the options without reading a weight; the cheapest checks first.

    Args:
        model: see `justright.checkpoint.sources.resolve`; or its checkpoint.
        options: how it will run.
        default_draft: the drafter if neither the options nor a bundle name one.

    Raises:
        JustrightError: any of its kinds.
    """
    _ = options.torch_device
    if options.draft is not None:
        check_drafter(options.draft, **options.draft_options)  # before anything is fetched
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(resolve(model).path)
    path = checkpoint.path
    options, defaults = settle(options, path, default_draft)
    drafter = create_drafter(options.draft or "none", **options.draft_options)
    check_model(checkpoint)
    check_tokenizer_files(path)
    generation = GenerationDefaults.read(options, path)
    tokenizer, switch = load_tokenizer(path), options.switch
    adapter = None if switch is None or switch == NO_SWITCH else read_switch(switch, checkpoint)
    if drafter is not None:
        drafter.check(path)
    return PreparedModel(checkpoint, options, defaults, generation, tokenizer, drafter, adapter)

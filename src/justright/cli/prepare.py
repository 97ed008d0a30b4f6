"""Prepares a model in two steps: first everything that can fail cheaply, then the weights.

ready = prepare("packaged:smollm2-135m-instruct", output, {"dtype": "float32"})
ids = ready.tokens([{"role": "user", "content": "Hello"}])   # token ids
engine = load(ready, output, name)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from justright.architectures.spec import architecture_of
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import check_tokenizer_files, resolve
from justright.cli.options import chosen
from justright.cli.output import Terminal, output_of

if TYPE_CHECKING:
    from justright.engine.generation import ModeParams
    from justright.engine.llm import LLM
    from justright.engine.prepared import PreparedModel
    from justright.engine.sampler import SamplingParams

Message = Mapping[str, str]
_DRAFT = "suffix"
"""The drafter if neither the user nor the bundle names one."""


def prepare(model: str, output: Terminal, options: Mapping[str, Any]) -> PreparedModel:
    """Call `prepare_model`, after the checks that need neither torch nor transformers, whose import takes seconds.

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
    checkpoint = Checkpoint.open(resolve(model, progress=not (output.quiet or output.json)).path)
    architecture_of(checkpoint.config)
    check_tokenizer_files(checkpoint.path)
    with output.status("starting torch"):
        _quiet_libraries(output)
        from justright.engine.options import EngineOptions
        from justright.engine.prepared import prepare_model
    return prepare_model(checkpoint, EngineOptions(**options), default_draft=_DRAFT)


def load(ready: PreparedModel, output: Terminal, name: str) -> LLM:
    """Load the weights of a prepared model, which the status line calls ``name``.

    Raises:
        JustrightError: any of its kinds.
    """
    with output.status(f"loading {name}"):
        from justright.engine.llm import LLM

        return LLM(ready)


def given_sampling(ctx: typer.Context, ready: PreparedModel) -> dict[str, Any]:
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


def sampling_of(
    ctx: typer.Context, ready: PreparedModel, otherwise: SamplingParams | None = None
) -> ModeParams:
    """Choose and print sampling parameters: the user's, else the bundle's, the model file's, ``otherwise`` (greedy).

    Raises:
        UsageError: a value is not allowed.
    """
    from justright.engine.sampler import SamplingParams

    given = given_sampling(ctx, ready)
    params = ready.generation.params(given, otherwise or SamplingParams())
    for line in ready.generation.lines(given, sampling=not params.slow.greedy):
        output_of(ctx).note(f"note: {line}")
    return params


def _quiet_libraries(output: Terminal) -> None:
    """Turn the libraries' progress bars off unless progress is shown."""
    from transformers.utils import logging

    if output.progress:
        logging.enable_progress_bar()
    else:
        logging.disable_progress_bar()

"""justright: prune, switch and draft for open-weight language models, on one engine.

from justright import LLM, SamplingParams

with LLM("packaged:smollm2-135m-instruct") as llm:
    for output in llm.generate(["One, two,", "Red, green,"], SamplingParams(max_tokens=16)):
        print(output.prompt, output.text)

Names are imported at their first use, so that ``import justright`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from justright.adapter.extract import extract_adapter
    from justright.engine.chat_modes import Reasoning
    from justright.engine.llm import LLM
    from justright.engine.output import Output
    from justright.engine.sampler import SamplingParams
    from justright.errors import (
        CheckpointError,
        ConstraintError,
        JustrightError,
        MissingExtraError,
        ResourceError,
        SourceError,
        UnsupportedModelError,
        UsageError,
    )
    from justright.evaluate.run import evaluate
    from justright.prune.pipeline import prune
    from justright.training.drafter import train_drafter

__all__ = [
    "LLM",
    "CheckpointError",
    "ConstraintError",
    "JustrightError",
    "MissingExtraError",
    "Output",
    "Reasoning",
    "ResourceError",
    "SamplingParams",
    "SourceError",
    "UnsupportedModelError",
    "UsageError",
    "evaluate",
    "extract_adapter",
    "prune",
    "train_drafter",
]

_HOMES = {
    "LLM": "engine.llm",
    "Output": "engine.output",
    "Reasoning": "engine.chat_modes",
    "SamplingParams": "engine.sampler",
    "extract_adapter": "adapter.extract",
    "train_drafter": "training.drafter",
}


def __getattr__(name: str) -> Any:
    if name in ("prune", "evaluate"):  # callable packages
        return import_module(f"justright.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'justright' has no attribute {name!r}")
    return getattr(import_module(f"justright.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

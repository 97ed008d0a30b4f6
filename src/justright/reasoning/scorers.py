"""Scorers of prompt difficulty, with the threshold for reasoning: a fitted probe, a heuristic, a user's function.

A probe is a logistic regression on the prompt's last hidden state in fast mode, standardised; its threshold
comes from `justright.reasoning.thresholds`, which holds an accuracy on prompts like those that it was fitted
on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from justright.errors import CheckpointError, UsageError

if TYPE_CHECKING:  # a gateway scores without torch
    from torch import Tensor

PROBE = "auto.json"


class Scorer(Protocol):
    """Scores the difficulty of a prompt; above ``threshold`` reasoning is worth its cost."""

    @property
    def name(self) -> str:
        """Its name in statistics."""
        ...

    @property
    def threshold(self) -> float:
        """Scores above it select the slow mode."""
        ...

    def score(self, prompt: str, hidden: Tensor | None) -> float:
        """Difficulty of ``prompt``; ``hidden [hidden_size]``: its last state in fast mode, None if unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """A logistic regression: the probability that the fast answer is wrong and the slow one right.

    Attributes:
        weight: ``[hidden_size]`` float32, of the standardised state.
        bias: added.
        mean: ``[hidden_size]``, subtracted from the state.
        scale: ``[hidden_size]``, the divisor after that.
        threshold: scores above it select the slow mode.
        about: what it was fitted on, and the accuracy that it holds.
    """

    weight: Tensor
    bias: float
    mean: Tensor
    scale: Tensor
    threshold: float
    about: Mapping[str, Any]
    name: str = "probe"

    def score(self, prompt: str, hidden: Tensor | None) -> float:
        """See `Scorer`."""
        if hidden is None:
            raise UsageError("a probe needs hidden states, and there are none here: choose the heuristic")
        return float(self.scores(hidden[None])[0])

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores in (0, 1), ``[prompts]``, of ``hidden [prompts, hidden_size]``."""
        standard = (hidden.float().cpu() - self.mean) / self.scale
        return (standard @ self.weight + self.bias).sigmoid()

    def save(self, folder: Path) -> None:
        """Write ``auto.json`` into an adapter's folder, atomically."""
        from justright.files import write_whole

        vectors = {
            name: [round(v, 7) for v in getattr(self, name).tolist()] for name in ("weight", "mean", "scale")
        }
        content = {
            "scorer": "probe",
            "threshold": self.threshold,
            "bias": self.bias,
            "about": self.about,
        } | vectors
        write_whole(folder / PROBE, json.dumps(content) + "\n")

    @classmethod
    def read(cls, folder: Path, hidden_size: int) -> Probe:
        """Read what `save` wrote.

        Raises:
            UsageError: there is none, or it is for another hidden size.
            CheckpointError: it is damaged.
        """
        import torch

        from justright.checkpoint.finite import check_finite

        file = folder / PROBE
        if not file.is_file():
            raise UsageError(
                f"{folder} has no {PROBE}, which the probe needs: run `justright switch calibrate`, or choose the "
                "heuristic",
                about="effort",
            )
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            vectors = [torch.tensor(found[name], dtype=torch.float32) for name in ("weight", "mean", "scale")]
            probe = cls(
                vectors[0],
                float(found["bias"]),
                vectors[1],
                vectors[2],
                float(found["threshold"]),
                found["about"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}): run `justright switch calibrate` again"
            ) from error
        named = zip(("weight", "mean", "scale", "bias"), [*vectors, torch.tensor(probe.bias)], strict=True)
        check_finite(dict(named), file)
        if any(len(vector) != hidden_size for vector in vectors):
            raise UsageError(
                f"{file} was fitted for hidden size {len(vectors[0])}, but the model's is {hidden_size}: run "
                "`justright switch calibrate` with this model"
            )
        return probe


@dataclass(frozen=True, slots=True)
class Callback:
    """A scorer from the user's own function of the prompt and its last state."""

    function: Callable[[str, Any], float]
    threshold: float = 0.5
    name: str = "callback"

    def score(self, prompt: str, hidden: Tensor | None) -> float:
        """See `Scorer`."""
        return float(self.function(prompt, hidden))


@dataclass(frozen=True, slots=True)
class Heuristic:
    """Counts signs of hard prompts. It is not fitted and holds no accuracy.

    The score is ``1 - exp(-signs / 8)``; each number, each operator, each word of reasoning and every 40
    words are one sign.
    """

    threshold: float = 0.5
    name: str = "heuristic"

    def score(self, prompt: str, hidden: Tensor | None) -> float:
        """See `Scorer`."""
        words = prompt.lower().split()
        signs = len(re.findall(r"\d+(?:\.\d+)?", prompt)) + len(re.findall(r"[+\-*/^=<>](?=\s|\d)", prompt))
        signs += sum(word.strip(".,;:?!") in _REASONING for word in words)
        return 1 - math.exp(-(signs + len(words) / 40) / 8)


_REASONING = frozenset(
    [
        "prove",
        "why",
        "how",
        "then",
        "each",
        "than",
        "derive",
        "step",
        "optimal",
        "debug",
        "until",
        "remaining",
    ]
)

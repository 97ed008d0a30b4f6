"""What the command and the script share: one call for the whole decode measurement, from names to results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from justright.bench.cost import verify_cost
from justright.bench.decode import (
    DecodeSetting,
    Progress,
    Results,
    check_room,
    measure,
    measure_memory,
    open_contenders,
)
from justright.bench.tasks import build
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import UsageError


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """A decode measurement.

    Attributes:
        model: name, as users give it.
        kinds: tasks.
        contexts: prompt tokens.
        decode: contenders, tokens, repeats, engine.
        memory: measure each contender's peak memory, on the first task of each context.
        cost: measure what verifying n tokens costs.
    """

    model: str
    kinds: tuple[str, ...]
    contexts: tuple[int, ...]
    decode: DecodeSetting
    memory: bool = False
    cost: bool = True

    def __post_init__(self) -> None:
        if not self.kinds or not self.contexts:
            raise UsageError("at least one task and one context length are needed")
        if any(context < 1 for context in self.contexts):
            raise UsageError("context lengths are 1 token or more")


def run_plan(plan: DecodePlan, file: Path | None = None, progress: Progress | None = None) -> Results:
    """Measure all of it; with a file, what it holds already is not measured again.

    Raises:
        JustrightError: any of its kinds; prompts, room and the file are checked before anything is timed.
    """
    path = resolve(plan.model).path
    identity = asdict(plan)
    # More contexts, tasks, repeats or contenders may join what was measured before; these may not differ.
    for varying in ("kinds", "contexts", "memory", "cost"):
        del identity[varying]
    for varying in ("contenders", "repeats"):
        del identity["decode"][varying]
    results = Results(identity, file)
    results.settle(plan.decode.contenders)
    tokenizer = load_tokenizer(path)
    tasks = [build(kind, tokenizer, context) for context in plan.contexts for kind in plan.kinds]
    opened = open_contenders(path, plan.decode)
    if opened.engine is not None:
        check_room(tasks, plan.decode.tokens, opened.engine.verifier.max_tokens)
    measure(opened, tasks, plan.decode, results, progress)
    if plan.cost and opened.engine is not None and results.cost is None:
        results.cost = verify_cost(opened.engine.verifier, plan.contexts)
        results.save()
    del opened
    if plan.memory:
        for context in plan.contexts:
            [task, *_] = [task for task in tasks if task.context == context]
            measure_memory(path, task, plan.decode, results, progress)
    return results


def numbers(text: str) -> tuple[int, ...]:
    """``"1024,4096"`` to its numbers.

    Raises:
        UsageError: something else.
    """
    try:
        return tuple(int(part) for part in words(text))
    except ValueError as error:
        raise UsageError(f"{text!r} is no list of whole numbers, such as 1024,4096") from error


def words(text: str) -> Sequence[str]:
    """``"a, b"`` to its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]

"""One call for the whole decode benchmark, from names to results; the command and the script share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from justright.bench.cost import verify_cost
from justright.bench.decode import (
    DecodeSetting,
    Results,
    check_context,
    measure,
    measure_memory,
    open_contenders,
)
from justright.bench.tasks import build
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import UsageError
from justright.progress import ProgressCallback


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Settings of a decode benchmark.

    Attributes:
        model: name, as users give it.
        kinds: of tasks.
        contexts: prompt tokens.
        decode: contenders, tokens, repeats, engine.
        memory: measure each contender's peak memory, on the first task of each context.
        cost: measure the cost of verifying n tokens.
    """

    model: str
    kinds: tuple[str, ...]
    contexts: tuple[int, ...]
    decode: DecodeSetting
    memory: bool = False
    cost: bool = True

    def __post_init__(self) -> None:
        if not self.kinds or not self.contexts:
            raise UsageError("no task or no context length is given; give at least one of each")
        if any(context < 1 for context in self.contexts):
            raise UsageError(f"a context length is {min(self.contexts)}; allowed: 1 token or more")


def run_plan(plan: DecodePlan, file: Path | None = None, progress: ProgressCallback | None = None) -> Results:
    """Run the benchmark; results that the file already holds are not measured again.

    Raises:
        JustrightError: prompts, context or the file do not fit; checked before anything is timed.
    """
    path = resolve(plan.model).path
    identity = asdict(plan)
    # Later runs may add tasks, contexts, repeats and contenders to the file; all other settings must be the same.
    for varying in ("kinds", "contexts", "memory", "cost"):
        del identity[varying]
    for varying in ("contenders", "repeats"):
        del identity["decode"][varying]
    results = Results(identity, file)
    results.record_contenders(plan.decode.contenders)
    tokenizer = load_tokenizer(path)
    tasks = [build(kind, tokenizer, context) for context in plan.contexts for kind in plan.kinds]
    opened = open_contenders(path, plan.decode)
    if opened.engine is not None:
        check_context(tasks, plan.decode.tokens, opened.engine.verifier.max_tokens)
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
    """Parse ``"1024,4096"``.

    Raises:
        UsageError: the text is no list of whole numbers.
    """
    try:
        return tuple(int(part) for part in words(text))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of whole numbers; give one such as 1024,4096") from error


def words(text: str) -> Sequence[str]:
    """Parse ``"a, b"``."""
    return [part.strip() for part in text.split(",") if part.strip()]

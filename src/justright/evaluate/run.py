"""Run lm-eval's tasks on a model: metrics with confidence intervals, and the number of tokens."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.errors import MissingExtraError, SourceError, UsageError, install_command
from justright.intervals import interval

_SLOTS = 16
TASK_FOLDERS = "justright.lm_eval_tasks"
"""Entry-point group for folders of lm-eval tasks (`pathlib.Path`)."""


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """One metric of one task.

    Attributes:
        task: name of the task.
        metric: lm-eval's name; a filter other than ``none`` follows after a comma.
        value: mean over the documents.
        low: lower end of the 95% interval: Wilson's if every document scores 0 or 1, else normal; None for a
            metric that is no mean over documents (perplexity).
        high: upper end.
        documents: number of documents.
        tokens: mean tokens of an answer; None if nothing is generated.
    """

    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    documents: int
    tokens: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def need_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"evaluation needs lm-eval; {install_command('eval')}") from error


def quieten() -> None:
    """Silence the log lines and progress bars of lm-eval and datasets; errors stay."""
    import datasets
    from lm_eval import evaluator

    evaluator.get_git_commit_hash = lambda: None  # git prints an error outside a repository
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def local_tasks(folder: Path | None = None) -> list[str]:
    """The tasks of installed packages (`TASK_FOLDERS`) and of a folder, without lm-eval's own."""
    from lm_eval.tasks import TaskManager

    return sorted(TaskManager(include_path=_folders(folder), include_defaults=False).all_tasks)


def task_manager(folder: Path | None = None) -> Any:
    """A manager of lm-eval's tasks, those of installed packages (`TASK_FOLDERS`), and those of a folder."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=_folders(folder) or None)


def _folders(folder: Path | None) -> list[str]:
    points = importlib.metadata.entry_points(group=TASK_FOLDERS)
    return [str(point.load()) for point in points] + ([str(folder)] if folder else [])


def check_tasks(names: Sequence[str], manager: Any) -> list[str]:
    """The tasks that match ``names`` (patterns are allowed).

    Raises:
        SourceError: a name matches no task, group or tag.
    """
    found = []
    for name in names:
        matches = manager.match_tasks([name])
        if not matches:
            raise SourceError(
                f"there is no evaluation task {name!r}; `justright eval --list` lists the tasks that need no network, "
                "`lm-eval ls tasks` all others"
            )
        found += matches
    return list(dict.fromkeys(found))


def evaluate(
    engine: LLM | str,
    tasks: Sequence[str],
    manager: Any = None,
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    chat: bool = False,
    max_tokens: int = 256,
    template: Mapping[str, Any] | None = None,
    thinking: Reasoning | None = None,
    progress: bool = True,
) -> list[TaskMetric]:
    """Run tasks.

    Args:
        engine: the model; a name is loaded with 16 slots and freed at the end.
        tasks: names of tasks, groups or tags; patterns are allowed.
        manager: from `task_manager`, the default.
        limit: documents per task; all by default.
        few_shot: examples before each question; the task's own number by default.
        chat: put questions into the model's chat template.
        max_tokens: of an answer, unless the task sets it.
        template: further arguments of the chat template.
        thinking: how the model reasons; questions then need the chat template.
        progress: show progress bars on stderr.

    Raises:
        MissingExtraError: lm-eval is not installed.
        SourceError: no such task or model.
        UsageError: a task sets an option that the engine does not support, or the model has no chat template.
    """
    need_lm_eval()
    if isinstance(engine, str):
        manager = manager or task_manager()
        names = check_tasks(tasks, manager)
        with LLM(engine, slots=_SLOTS) as llm:
            return evaluate(
                llm, names, manager, limit=limit, few_shot=few_shot, chat=chat, max_tokens=max_tokens,
                template=template, thinking=thinking, progress=progress,
            )  # fmt: skip
    from lm_eval import simple_evaluate

    from justright.evaluate.model import EngineLM

    if chat and (engine.tokenizer is None or engine.tokenizer.chat_template is None):
        raise UsageError("this model has no chat template; omit --chat")
    if manager is None:
        manager = task_manager()
        tasks = check_tasks(tasks, manager)
    model = EngineLM(engine, max_tokens, dict(template or {}), thinking, progress=progress)
    results = simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=few_shot,
        limit=limit,
        apply_chat_template=chat,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert results is not None
    return figures(results, model.tokens)


def figures(results: Mapping[str, Any], tokens: Mapping[str, Sequence[int]]) -> list[TaskMetric]:
    """The metrics of every task in lm-eval's results, without groups."""
    found = []
    for task, samples in results["samples"].items():
        spent = tokens.get(task)
        mean_tokens = sum(spent) / len(spent) if spent else None
        for key, value in results["results"][task].items():
            metric, _, chosen = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not chosen:
                continue
            # A task with several filters logs every document once per filter.
            of_filter = [s for s in samples if s.get("filter", chosen) == chosen]
            scores = [s[metric] for s in of_filter if isinstance(s.get(metric), int | float)]
            low, high = interval(scores, float(value))
            name = metric if chosen == "none" else f"{metric},{chosen}"
            found.append(TaskMetric(task, name, float(value), low, high, len(of_filter), mean_tokens))
    return found

"""lm-eval on our engine: scores against transformers' logits, answers, token counts, intervals and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from justright.engine.llm import LLM
from justright.engine.model_runner import Verifier
from justright.errors import SourceError, UsageError
from justright.evaluate.run import check_tasks, evaluate, figures, need_lm_eval, task_manager
from tiny import tiny_model, tiny_tokenizer

need_lm_eval()

from justright.evaluate.model import EngineLM  # noqa: E402


@pytest.fixture(scope="module")
def engine() -> LLM:
    model = tiny_model("llama")
    return LLM.from_parts(Verifier(model, slots=3, prefill_chunk=5), tiny_tokenizer())


def by_transformers(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    model = tiny_model("llama")
    with torch.inference_mode():
        logits = model(torch.tensor([context + continuation])).logits[0].float()
    rows = logits[len(context) - 1 : -1]
    targets = torch.tensor(continuation)
    score = float(torch.log_softmax(rows, -1).gather(1, targets[:, None]).sum())
    return score, bool((rows.argmax(-1) == targets).all())


@pytest.mark.parametrize(
    ("context", "continuation"),
    [([9], [10]), ([9, 10, 11], [12, 13]), (list(range(8, 20)), list(range(20, 29))), ([9] * 5, [10] * 6)],
)
def test_scores_equal_transformers(engine: LLM, context: list[int], continuation: list[int]) -> None:
    model = EngineLM(engine)
    for _ in range(2):  # the second run finds the context in the cache
        score, greedy = model._score(context, continuation)
        expected, expected_greedy = by_transformers(context, continuation)
        assert score == pytest.approx(expected, abs=1e-3)
        assert greedy == expected_greedy


def test_greedy_is_seen(engine: LLM) -> None:
    request = engine.generate_request([9, 10, 11], max_tokens=4, ignore_eos=True)
    score, greedy = EngineLM(engine)._score([9, 10, 11], request.token_ids)
    assert greedy
    assert score < 0


def tasks(folder: Path, kind: str) -> None:
    """A task over a local file, like the zoo's tasks."""
    (folder / "load.py").write_text(
        "from pathlib import Path\nfrom datasets import Dataset\n"
        "def rows(**_):\n    return {'test': Dataset.from_json(str(Path(__file__).parent / 'rows.jsonl'))}\n"
    )
    rows = [
        {"question": "a b c", "answer": "d"},
        {"question": "b c", "answer": "e"},
        {"question": "c", "answer": "f"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = {
        "generate_until": "generation_kwargs:\n  until: []\n  max_gen_toks: 5\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n",
        "loglikelihood": "metric_list:\n  - metric: acc\n",
        "loglikelihood_rolling": "metric_list:\n  - metric: byte_perplexity\n",
    }[kind]
    text = "" if kind == "loglikelihood_rolling" else "{{question}}"
    target = "{{question}}" if kind == "loglikelihood_rolling" else "{{answer}}"
    (folder / "task.yaml").write_text(
        f"task: mine_{kind}\noutput_type: {kind}\ncustom_dataset: !function load.rows\ntest_split: test\n"
        f'doc_to_text: "{text}"\ndoc_to_target: "{target}"\n{body}metadata:\n  version: 1.0\n'
    )


@pytest.mark.usefixtures("lm_eval_index")
@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood", "loglikelihood_rolling"])
def test_a_task_runs_to_its_figures(kind: str, engine: LLM, tmp_path: Path) -> None:
    tasks(tmp_path, kind)
    manager = task_manager(tmp_path)
    found = evaluate(engine, check_tasks([f"mine_{kind}"], manager), manager)
    [figure] = [f for f in found if f.task == f"mine_{kind}"][:1]
    assert figure.documents == 3
    if kind == "generate_until":
        assert figure.tokens is not None
        assert 1 <= figure.tokens <= 5
        assert figure.low is not None
        assert figure.low <= figure.value
    else:
        assert figure.tokens is None


@pytest.mark.usefixtures("lm_eval_index")
def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no_such_task"):
        check_tasks(["no_such_task"], task_manager(tmp_path))


def test_chat_without_a_template_is_refused(engine: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.tokenizer, "chat_template", None)
    with pytest.raises(UsageError, match="chat template"):
        evaluate(engine, [], None, chat=True)


def test_each_filter_counts_its_own_documents() -> None:
    samples = [
        {"filter": name, "exact_match": value}
        for name, values in (("strict", (0, 0)), ("loose", (1, 0)))
        for value in values
    ]
    results = {
        "samples": {"t": samples},
        "results": {
            "t": {
                "alias": "t",
                "exact_match,strict": 0.0,
                "exact_match,loose": 0.5,
                "exact_match_stderr,loose": 1,
            }
        },
    }
    found = {f.metric: (f.value, f.documents, f.tokens) for f in figures(results, {"t": [3, 5]})}
    assert found == {"exact_match,strict": (0.0, 2, 4.0), "exact_match,loose": (0.5, 2, 4.0)}

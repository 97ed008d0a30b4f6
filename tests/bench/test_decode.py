"""Decode benchmark: all contenders emit the same tokens, a wrong one is detected, an interrupted run resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from justright.bench.agreement import compare
from justright.bench.contenders import (
    LOOKUP,
    PLAIN,
    TRANSFORMERS,
    EngineContender,
    Generation,
    engine_logits,
    transformers_logits,
)
from justright.bench.decode import (
    DecodeSetting,
    OpenContenders,
    Results,
    check_context,
    fitting_length,
    measure,
    open_contenders,
)
from justright.bench.demo import refuse_mismatches
from justright.bench.peak_memory import own_peak_bytes, peak_bytes
from justright.bench.running import DecodePlan, numbers, run_plan
from justright.bench.tables import (
    HEADER,
    cost_rows,
    fitted,
    markdown_table,
    median_ratio,
    rows,
    steadiness_line,
    unsteadiness,
)
from justright.bench.tasks import Task, build
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import JustrightError, ResourceError, UsageError
from tiny import save_tiny

ALL = (PLAIN, "suffix", TRANSFORMERS, LOOKUP)
TOKENS = 24


@pytest.fixture(scope="module")
def opened(tiny_path: Path) -> OpenContenders:
    return open_contenders(tiny_path, DecodeSetting(ALL))


@pytest.fixture(scope="module")
def task(tiny_path: Path) -> Task:
    return build("summarise", load_tokenizer(tiny_path), 400)


def test_a_contender_alone_is_compared_with_nothing(tiny_path: Path, task: Task) -> None:
    setting = DecodeSetting((PLAIN,), TOKENS, 1)
    results = Results({})
    measure(open_contenders(tiny_path, setting), [task], setting, results)
    assert results.to_dict()["cells"][task.name][PLAIN]["agreement"] is None
    assert rows(results)[0][-1] == "-"


class Broken:
    """Wraps a contender and changes one token."""

    name = "suffix"

    def __init__(self, inner: object, at: int) -> None:
        self.inner, self.at = inner, at

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Generation:
        run = self.inner.run(prompt_ids, tokens, again=again)  # type: ignore[attr-defined]
        token_ids = list(run.token_ids)
        if self.at < len(token_ids):
            token_ids[self.at] = (token_ids[self.at] + 1) % 320
        return replace(run, token_ids=token_ids)


def test_all_contenders_emit_the_same(opened: OpenContenders, task: Task) -> None:
    results = Results({})
    measure(opened, [task], DecodeSetting(ALL, TOKENS, 2), results)
    cells = results.cells[task.name]
    assert list(cells) == list(ALL)
    assert {cell.agreement.verdict for cell in cells.values() if cell.agreement} == {"identical"}
    for cell in cells.values():
        assert [len(run.token_ids) for run in cell.runs] == [TOKENS, TOKENS]
        assert all(run.decode_s > 0 for run in cell.runs)
        assert cell.runs[0].prefill_s
    # The second run found the prompt in the cache, except with prompt lookup, which cannot use it.
    assert [cells[name].runs[1].prefill_s is None for name in ALL] == [True, True, True, False]
    assert cells[TRANSFORMERS].runs[0].verifications == TOKENS - 1
    assert cells[PLAIN].runs[0].verifications == TOKENS - 1
    assert cells[LOOKUP].runs[0].verifications <= TOKENS - 1
    refuse_mismatches(results)
    header, body = fitted(HEADER, rows(results), 80)
    assert "min-max" not in header
    assert [row[0] for row in body] == [task.name, "", "", ""]
    assert len(rows(results)) == 4
    assert median_ratio(results, PLAIN, PLAIN) == 1
    assert markdown_table(HEADER, rows(results)).count("\n") == 6


def test_a_busy_machine_is_reported() -> None:
    results = Results({})
    for prefill_s, decode_s in ((1.0, 1.0), (1.1, 1.05)):
        assert "steady" not in steadiness_line(results) or "not known" in steadiness_line(results)
        results.cell("a@1", PLAIN).runs.append(Generation([1, 2, 3], prefill_s, 1, decode_s, 2))
    assert unsteadiness(results) == pytest.approx(1.1)
    assert "steady" in steadiness_line(results)
    results.cell("a@1", "suffix").runs.append(Generation([1, 2, 3], 2.2, 1, 1.0, 2))
    assert unsteadiness(results) == pytest.approx(2.2)
    assert "BUSY" in steadiness_line(results)


def test_end_tokens_end_nothing(opened: OpenContenders, task: Task) -> None:
    expected = opened.contenders[0].run(task.prompt_ids, TOKENS).token_ids
    model = opened.model
    assert model is not None
    assert model.generation_config.eos_token_id is None
    assert len(expected) == TOKENS


def test_a_broken_contender_is_a_mismatch(opened: OpenContenders, task: Task) -> None:
    broken = replace_contender(opened, Broken(opened.contenders[1], at=7))
    results = Results({})
    measure(broken, [task], DecodeSetting(ALL, TOKENS, 1), results)
    agreement = results.cells[task.name]["suffix"].agreement
    assert agreement is not None
    assert (agreement.verdict, agreement.position, agreement.wrong_at) == ("mismatch", 7, 7)
    with pytest.raises(JustrightError, match="MISMATCH at token 7"):
        refuse_mismatches(results)


def replace_contender(opened: OpenContenders, other: Broken) -> OpenContenders:
    contenders = [other if one.name == other.name else one for one in opened.contenders]
    return OpenContenders(contenders, opened.logits, opened.engine, opened.model)


def test_a_difference_at_a_tie_is_no_mismatch_but_one_after_it_is() -> None:
    def logits(_prompt: Sequence[int], output: Sequence[int]) -> Tensor:
        rows = torch.zeros(len(output), 5)
        rows[:, 3] = 9.0
        rows[1, 2] = 9.0 - 1e-6  # tokens 2 and 3 tie at position 1 only
        return rows

    assert str(compare([0], [3, 3, 3], [3, 3, 3], logits)) == "identical"
    tie = compare([0], [3, 3, 3], [3, 2, 3], logits)
    assert (tie.verdict, tie.position) == ("tie", 1)
    assert str(tie).startswith("tie at token 1 (gap ")
    later = compare([0], [3, 3, 3], [3, 2, 4], logits)
    assert (later.verdict, later.position, later.wrong_at) == ("mismatch", 1, 2)
    assert compare([0], [3, 4, 3], [3, 3, 3], logits).verdict == "mismatch"  # the reference is wrong
    assert compare([0], [3, 3], [3], logits).verdict == "mismatch"


def test_both_ways_to_recompute_logits_agree(opened: OpenContenders, task: Task) -> None:
    assert opened.engine is not None
    assert opened.model is not None
    output = opened.contenders[0].run(task.prompt_ids, 5).token_ids
    ours = engine_logits(opened.engine, task.prompt_ids, output)
    theirs = transformers_logits(opened.model, task.prompt_ids, output)
    assert ours.argmax(-1).tolist() == output
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_windows_are_read_in_chunks_to_the_same_end(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny(family, tmp_path / family, max_position_embeddings=1024)
    opened = open_contenders(path, DecodeSetting(ALL))
    assert opened.model is not None
    for one in opened.contenders:
        if isinstance(one, EngineContender):
            one.engine.cost = None  # otherwise timing decides which drafts are verified, and how many
    prompt = build("summarise", load_tokenizer(path), 400).prompt_ids
    lengths: list[int] = []
    opened.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    whole = {one.name: one.run(prompt, TOKENS) for one in opened.contenders}
    assert max(lengths) >= len(prompt)
    whole_logits = transformers_logits(opened.model, prompt, whole[PLAIN].token_ids)
    monkeypatch.setattr("justright.bench.contenders.CHUNK", 64)
    lengths.clear()
    for one in opened.contenders:
        for again in (False, True):
            run = one.run(prompt, TOKENS, again=again)
            assert run.token_ids == whole[PLAIN].token_ids == whole[one.name].token_ids
            assert run.verifications == whole[one.name].verifications
            assert run.first_tokens == whole[one.name].first_tokens
            assert (run.prefill_s is None) == (again and one.name not in (TRANSFORMERS, LOOKUP))
    assert max(lengths) == 64
    logits = transformers_logits(opened.model, prompt, whole[PLAIN].token_ids)
    torch.testing.assert_close(logits, whole_logits, rtol=1e-4, atol=1e-4)


class Counting:
    """Counts its runs, and interrupts the measurement after some."""

    name = PLAIN

    def __init__(self, allowed: int) -> None:
        self.runs, self.allowed = 0, allowed

    def run(self, prompt_ids: Sequence[int], tokens: int, *, again: bool = False) -> Generation:
        if len(prompt_ids) > 64:
            if self.runs == self.allowed:
                raise KeyboardInterrupt
            self.runs += 1
        return Generation([1] * tokens, 0.1, 1, 0.1, tokens - 1)


def test_an_interrupted_measurement_continues(tmp_path: Path, task: Task, opened: OpenContenders) -> None:
    file = tmp_path / "deep" / "results.json"
    setting = DecodeSetting((PLAIN,), TOKENS, 3)
    first = Counting(allowed=2)
    with pytest.raises(KeyboardInterrupt):
        measure(OpenContenders([first], opened.logits, None, None), [task], setting, Results({"of": 1}, file))
    second = Counting(allowed=99)
    results = Results({"of": 1}, file)
    measure(OpenContenders([second], opened.logits, None, None), [task], setting, results)
    assert (first.runs, second.runs) == (2, 1)
    saved = json.loads(file.read_text())
    assert len(saved["cells"][task.name][PLAIN]["runs"]) == 3
    assert saved["machine"]["threads"] == torch.get_num_threads()
    again = Results({"of": 1}, file)
    assert again.to_dict()["cells"] == results.to_dict()["cells"]


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    results = Results({"of": 1}, file)
    results.save()
    with pytest.raises(UsageError, match="with other settings"):
        Results({"of": 2}, file)
    data = results.to_dict()
    data["machine"]["threads"] += 1
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"another environment \(threads differ\)"):
        Results({"of": 1}, file)
    file.write_text("{}")
    with pytest.raises(UsageError, match="no measurement"):
        Results({"of": 1}, file)


def test_a_plan_from_names_to_numbers(tiny_path: Path, tmp_path: Path) -> None:
    plan = DecodePlan(str(tiny_path), ("summarise", "continue"), (400,), DecodeSetting((PLAIN, LOOKUP), 8, 1))
    results = run_plan(plan, tmp_path / "out.json")
    assert list(results.cells) == ["summarise@400", "continue@400"]
    assert results.cost is not None
    header, body = cost_rows(results.cost)
    assert len(header) == len(body[0]) == 9
    assert body[0][0] == "400"


def test_peak_memory_is_the_own_process_only(tiny_path: Path) -> None:
    peak = peak_bytes(tiny_path, PLAIN, "continue", 300, 4, {})
    assert 50 * 2**20 < peak < 4 * 2**30
    assert own_peak_bytes() > 50 * 2**20
    with pytest.raises(JustrightError, match="measuring the memory of plain failed"):
        peak_bytes(tiny_path, PLAIN, "no such task", 300, 4, {})


def test_a_models_sampling_settings_do_not_matter_to_greedy_contenders(
    tiny_path: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tiny_path, tmp_path / "model"))
    (path / "generation_config.json").write_text('{"temperature": "hot"}')
    assert open_contenders(path, DecodeSetting((PLAIN,))).contenders


def test_bad_requests(task: Task) -> None:
    with pytest.raises(UsageError, match="allowed: plain, suffix"):
        DecodeSetting(("none",))
    with pytest.raises(UsageError, match="once"):
        DecodeSetting((PLAIN, PLAIN))
    with pytest.raises(UsageError, match="repeat"):
        DecodeSetting((PLAIN,), repeats=0)
    with pytest.raises(UsageError, match="whole numbers"):
        numbers("1024,many")
    with pytest.raises(UsageError, match="context length"):
        DecodePlan("x", ("continue",), (), DecodeSetting((PLAIN,)))
    with pytest.raises(ResourceError, match="smaller --context"):
        check_context([task], 128, 450)


def test_lengths_follow_the_context_and_the_tokenizer(tiny_path: Path, tmp_path: Path) -> None:
    """The requested length if all tasks can have it, else a longer one that fits the context, else an error."""
    assert fitting_length(tiny_path, ["continue"], 64, 8) == 64
    longer = fitting_length(tiny_path, ["quote-and-answer"], 64, 8)
    assert longer > 64
    build("quote-and-answer", load_tokenizer(tiny_path), longer)
    short = shutil.copytree(tiny_path, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    assert fitting_length(short, ["continue"], 64, 8) == 32
    with pytest.raises(UsageError, match="context of 40 allows 32"):
        fitting_length(short, ["quote-and-answer"], 64, 8)

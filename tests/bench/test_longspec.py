"""LongSpecBench: prompts by length, contenders with options, summaries, and resumption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from draft_helpers import saved_drafter
from justright.bench.contenders import ContenderName, Generation, check_names
from justright.bench.decode import DecodeSetting, Results
from justright.bench.longset import Prompt, write
from justright.bench.longspec import (
    NARROW,
    LongPlan,
    Summary,
    draw,
    left_out,
    narrow_rows,
    run_longspec,
    summaries,
    table_rows,
)
from justright.bench.tables import rich_table
from justright.errors import ResourceError, UsageError
from tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("p") / "prompts.jsonl"
    words = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "to", "the", "cat"] * 20
    made = [
        Prompt(
            f"{kind}-{bucket}-0",
            kind,
            bucket,
            ({"role": "text" if kind == "continue" else "user", "content": " ".join(words[: bucket // 2])},),
            "",
            "mine",
            "mine",
        )
        for kind in ("continue", "summarise")
        for bucket in (64, 128)
    ]
    write(made, file)
    return file


def plan_for(model: Path, prompts: Path, *contenders: str, **changes: object) -> LongPlan:
    setting = DecodeSetting(contenders, 12, 2)
    return LongPlan(str(model), setting, prompts, **{"buckets": (64, 128), **changes})  # type: ignore[arg-type]


def test_all_contenders_emit_the_same_and_lengths_are_separate(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = saved_drafter(tiny_model("llama"), tmp_path / "d")
    about = json.loads((folder / "config.json").read_text())
    from justright.checkpoint.fingerprint import weights_identity

    (folder / "config.json").write_text(json.dumps(about | {"verifier": weights_identity(model)}))
    mine = f"mine=lstm:path={folder};spec=true;min_prob=0"
    plan = plan_for(
        model, prompts, "plain", "suffix", "recycling", mine, f"hybrid:path={folder}", "transformers"
    )
    file = tmp_path / "out.json"
    results = run_longspec(plan, file)
    assert not results.mismatches
    found = summaries(results)
    assert [one.group for one in found if one.contender == "plain"] == ["64", "128"]
    assert {one.contender for one in found} == {
        "plain",
        "suffix",
        "recycling",
        "mine",
        f"hybrid:path={folder}",
        "transformers",
    }
    for one in found:
        assert one.prompts == 2
        assert one.acceptance_length >= 1
        assert one.x_plain is not None
        if one.contender == "plain":
            assert one.x_plain == 1.0
            assert one.acceptance_length == 1.0
            assert one.draft_ms < one.verify_ms
    assert {one.group for one in summaries(results, by="kind")} == {"continue", "summarise"}
    assert len(table_rows(found)) == len(found)
    draw(results, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
    # A second run measures nothing twice; another prompt set raises.
    before = json.loads(file.read_text())["cells"]
    run_longspec(plan, file)
    assert json.loads(file.read_text())["cells"] == before
    with pytest.raises(UsageError, match="with other settings"):
        run_longspec(plan_for(model, prompts, "plain", seed=3), file)


def test_only_the_first_of_ours_runs_a_prompt(model: Path, prompts: Path) -> None:
    results = run_longspec(plan_for(model, prompts, "plain", "suffix", "recycling"))
    for row in results.cells.values():
        assert row["plain"].runs[0].prefill_s is not None
        assert row["suffix"].runs[0].prefill_s is None
        assert row["recycling"].runs[1].prefill_s is None


def test_prompts_beyond_the_context_are_left_out_and_none_is_an_error(model: Path, prompts: Path) -> None:
    with pytest.raises(ResourceError, match="no prompt fits"):
        run_longspec(plan_for(model, prompts, "plain", buckets=(100_000,)))


def test_what_has_no_prompt_is_named(model: Path, prompts: Path) -> None:
    plan = plan_for(
        model, prompts, "plain", kinds=("summarise", "continue", "multi-turn"), buckets=(64, 100_000)
    )
    assert left_out(plan, run_longspec(plan)) == ["multi-turn@64", "100000"]


def test_contenders_with_labels_and_options() -> None:
    assert ContenderName.parse("suffix") == ContenderName("suffix", "suffix", {})
    assert ContenderName.parse("a=lstm:spec=false;nodes=8;path=x/y") == ContenderName(
        "a", "lstm", {"spec": False, "nodes": 8, "path": "x/y"}
    )
    for wrong in (["lstm:nodes"], ["plain:a=1"], ["nobody"], ["a=suffix", "a=lstm"], []):
        with pytest.raises(UsageError):
            check_names(wrong)


@pytest.mark.parametrize("changes", [{"kinds": ("songs",)}, {"kinds": ()}, {"buckets": ()}])
def test_wrong_plans_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="allowed: at least one length"):
        LongPlan("m", DecodeSetting(("plain",)), **changes)  # type: ignore[arg-type]


def test_summaries_count_tokens_and_verifications_together() -> None:
    results = Results({})
    for number, (steps, seconds) in enumerate(((10, 1.0), (5, 0.5))):
        cell = results.cell(f"continue-64-{number}", "x")
        cell.runs.append(Generation([0] * 21, 0.1, 1, seconds, steps, 0, 0.1, 0.4))
        results.cell(f"continue-64-{number}", "plain").runs.append(Generation([0] * 21, 0.1, 1, 2.0, 20))
    [one] = [s for s in summaries(results) if s.contender == "x"]
    assert one.acceptance_length == pytest.approx(40 / 15)
    assert one.x_plain == pytest.approx(3.0)
    assert one.x_plain_least == pytest.approx(2.0)
    assert one.x_plain_all == pytest.approx(4.0 / 1.5)
    assert one.verify_ms == pytest.approx(800 / 15)
    # A contender gains nothing by emitting five tokens before the clock starts.
    for cells in results.cells.values():
        cells["x"].runs = [Generation([0] * 21, 0.1, 5, cells["x"].runs[0].decode_s, 10, 0, 0.1, 0.4)]
    [one] = [s for s in summaries(results) if s.contender == "x"]
    assert one.x_plain_all == pytest.approx(4.0 / 1.5 * 16 / 20)


def test_a_narrow_terminal_has_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    figures = (5, 2.05, 12.5, 10.25, 11.5, 30.5, 120.5, 1300.5, 1094.5, 0.5, "identical")
    found = [
        Summary(group, name, *figures)
        for group in ("quote-and-answer", "summarise")
        for name in ("transformers-lookup", "hybrid:path=drafters/mine-2")
    ]
    Console(width=80).print(rich_table("By kind", NARROW, narrow_rows(found)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[4] == ["quote-and-answer"]
    assert lines[5] == [
        "transformers-lookup",
        "2.05",
        "12.50",
        "10.25",
        "120.5",
        "1300.5",
        "1094.5",
        "identical",
    ]
    assert lines[6][0] == "hybrid:p…ers/mine-2"
    assert len(lines) == 10, "no cell takes a second line"

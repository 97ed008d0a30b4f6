"""``justright switch`` and the reasoning options: output, files, and input that they reject before work."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from cli_helpers import Run
from justright.checkpoint.sources import resolve
from justright.errors import CheckpointError
from justright.evaluate.both_modes import read_questions
from tiny import save_tiny


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    slow, fast = save_tiny("llama", folder / "slow"), save_tiny("llama", folder / "fast")
    tensors = load_file(slow / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name][:8] += 0.01 * tensors[name][8:16]
    tensors["model.norm.weight"] += 0.1
    save_file(tensors, slow / "model.safetensors", {"format": "pt"})
    return slow, fast


def test_it_extracts(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("switch", "extract", *pair, "-o", tmp_path / "out", "--value", 0.999, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found == json.loads((tmp_path / "out" / "switch.json").read_text())
    assert [name for name, rank in found["ranks"].items() if rank] == ["layers.2.mlp.up_proj.weight"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    shown = run("switch", "extract", *pair, "-o", tmp_path / "merged", "--form", "merged", "--no-exact")
    assert shown.code == 0, shown.err
    assert "model.norm.weight" in shown.err
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--rule", "luck"), 2, "energy, entropy"),
        (("--value", "2"), 2, "allowed: above 0 to 1"),
        (("--form", "zip"), 2, "compact, portable"),
        (("--factor", "0.5"), 2, "--form merged only"),
        (("--budget", "10"), 2, "too small"),
        (("--dtype", "int8"), 2, "int8"),
        (("--rule", "entropy", "--value", "0.5"), 2, "--value has no effect"),
        (("--budget", "5000", "--value", "0.5"), 2, "--value has no effect"),
        (("--rule", "fixed", "--value", "2", "--power", "1"), 2, "--power has no effect"),
        (("--form", "merged", "--dtype", "bfloat16"), 2, "--dtype has no effect"),
        (("--rule", "fixed", "--value", "2", "--budget", "5000"), 2, "no effect"),
        (("--rule", "entropy", "--budget", "5000"), 2, "works with --rule energy only"),
        (("--form", "merged", "--factor", "7"), 2, "allowed: 0 (the slow model) to 1"),
        (("--svd", "randomized", "--max-rank", "2", "--value", "0.999"), 2, "the spectra keep 2 directions"),
        (("--svd", "magic"), 2, "exact, randomized"),
        (("--svd", "randomized", "--rule", "entropy"), 2, "all singular values"),
        (("--device", "moon"), 2, "moon"),
    ],
)
def test_bad_input(
    run: Run, pair: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run("switch", "extract", *pair, "-o", tmp_path / "out", *arguments)
    assert result.code == code, result.err
    assert message in result.err
    assert not list(tmp_path.iterdir()), "no file is left"


@pytest.fixture(scope="module")
def adapter(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair's switch; its models mark no reasoning."""
    from justright.adapter.extract import extract
    from justright.adapter.pair import Pair
    from justright.adapter.ranks import RankRule

    return extract(Pair(*pair), tmp_path_factory.mktemp("adapter") / "out", RankRule("energy", 0.999)).path


def test_a_dry_run_writes_nothing(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("switch", "extract", *pair, "--dry-run", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["matrices"] == 28
    assert found["seconds"] > 0
    shown = run("switch", "extract", *pair, "--dry-run", "-o", tmp_path / "out")
    assert "28 matrices" in shown.out
    assert not list(tmp_path.iterdir())
    assert run("switch", "extract", *pair).code == 2, "neither an output nor a dry run"


def test_a_folder_of_other_files_is_never_emptied(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    result = run("switch", "extract", *pair, "-o", tmp_path / "out", "--spectra", mine)
    assert result.code == 2
    assert "files that are not spectra" in result.err
    assert (mine / "thesis.txt").read_text() == "years of work"
    kept = tmp_path / "kept"
    assert run("switch", "extract", *pair, "-o", tmp_path / "one", "--spectra", kept).code == 0
    result = run("switch", "extract", *pair, "-o", tmp_path / "two", "--spectra", kept, "--max-rank", "7")
    assert result.code == 2
    assert "different max_rank" in result.err
    assert (kept / "layer-00000.safetensors").exists()


def test_a_picture_without_matplotlib_is_refused_before_the_work(
    run: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("switch", "inspect", adapter, "-o", tmp_path / "picture.png")
    assert result.code == 6
    assert "in the checkout of justright: pip install '.[plots]'" in result.err


def test_it_inspects(run: Run, adapter: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("switch", "inspect", adapter, "-o", tmp_path / "picture.png", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    sizes = [one["bytes"] for one in found["taus"]]
    assert sizes == sorted(sizes)
    assert found["kinds"]["mlp.up_proj"]["matrices"] == 4
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "self_attn.q_proj" in run("switch", "inspect", adapter).out
    cut = tmp_path / "cut"
    made = run(
        "switch",
        "extract",
        *pair,
        "-o",
        cut,
        "--rule",
        "fixed",
        "--value",
        2,
        "--max-rank",
        2,
        "--svd",
        "randomized",
    )
    assert made.code == 0, made.err
    assert "unknown" in run("switch", "inspect", cut).out
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "cannot be read" in run("switch", "inspect", cut).err
    for wrong, message in ((pair[0], "a checkpoint, not an adapter"), (tmp_path / "none", "no adapter")):
        result = run("switch", "inspect", wrong)
        assert result.code != 0
        assert message in result.err
    assert run("switch", "inspect", adapter, "-o", tmp_path / "picture.jpg").code == 2


def test_modes_in_generate(run: Run, adapter: Path, pair: tuple[Path, Path]) -> None:
    slow, fast = pair
    asked = ("-p", "the quick brown fox", "--max-tokens", 12, "--json", "--draft", "none")
    answers = {}
    for effort in (None, "none", "minimal"):
        more = () if effort is None else ("--switch", adapter, "--effort", effort)
        result = run("generate", slow, *asked, *more)
        assert result.code == 0, result.err
        answers[effort] = json.loads(result.out)
    expected = json.loads(run("generate", fast, *asked).out)
    assert answers["none"]["token_ids"] == answers["minimal"]["token_ids"] == expected["token_ids"]
    assert answers[None]["token_ids"] != expected["token_ids"]
    stats = answers["none"]["stats"]
    assert stats["fast_tokens"] == stats["output_tokens"] == 12
    assert stats["decision"]["mode"] == "fast"
    assert answers[None]["stats"]["decision"] is None
    off = json.loads(run("generate", slow, *asked, "--switch", adapter).out)
    assert off["token_ids"] == answers[None]["token_ids"]
    shown = run("generate", slow, *asked[:4], "-p", "the dog", "--switch", adapter, "--effort", "none")
    assert "fast: effort none" in shown.err
    assert "2 answers" in shown.err
    assert "2 fast by effort" in shown.err


def test_effort_none_is_already_true_of_a_model_without_reasoning(run: Run, pair: tuple[Path, Path]) -> None:
    asked = ("generate", pair[0], "-p", "the quick brown fox", "--max-tokens", 6, "--json", "--draft", "none")
    plain, none = run(*asked), run(*asked, "--effort", "none")
    assert none.code == 0, none.err
    assert json.loads(none.out)["token_ids"] == json.loads(plain.out)["token_ids"]
    chatted = run("chat", pair[0], "--effort", "minimal", stdin="the quick brown fox\n")
    assert chatted.code == 0, chatted.err


def test_a_model_that_ignores_its_template_is_counted_as_slow(run: Run) -> None:
    asked = ("generate", "zoo:slow", "-p", "What is 17 + 5 - 8?", "--json", "--draft", "none")
    found = run(*asked, "--effort", "none")
    answer = json.loads(found.out)
    close = AutoTokenizer.from_pretrained(resolve("zoo:slow").path).convert_tokens_to_ids("</think>")
    thought = answer["token_ids"].index(close) + 1
    assert (answer["stats"]["reasoning_tokens"], answer["stats"]["fast_tokens"]) == (thought, 0)
    assert (answer["stats"]["decision"]["mode"], answer["stats"]["decision"]["by"]) == ("slow", "output")
    assert f"the model reasoned for {thought} tokens" in found.err
    cut = run(*asked, "--effort", "none", "--max-tokens", 8)
    assert json.loads(cut.out)["stats"]["decision"]["mode"] == "fast", "no tag: nothing is known"
    assert "warning" not in cut.err
    turns = run("chat", "zoo:slow", "--effort", "none", "--json", stdin="What is 3 + 4?\nWhat is 5 + 9?\n")
    assert [json.loads(line)["stats"]["decision"]["by"] for line in turns.out.splitlines()] == ["output"] * 2
    assert turns.err.count("warning: ") == 1


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--effort", "maximum"), "allowed: none, minimal, low"),
        (("--effort", "escalate"), "needs a switch"),
        (("--effort", "auto"), "needs a switch"),
        (("--factor", "0.5"), "needs a switch: give --switch"),
        (("--thinking-budget", "5"), "has no reasoning tags"),
        (("--closing", "now"), "needs a reasoning budget"),
        (("--switch", "ADAPTER", "--effort", "auto"), "run `justright switch calibrate`"),
        (("--switch", "ADAPTER", "--effort", "none", "--factor", "0.5"), "not both"),
        (("--switch", "ADAPTER", "--threshold", "0.5"), "works with efforts auto and escalate only"),
        (("--switch", "ADAPTER", "--effort", "auto", "--scorer", "luck"), "allowed: probe, heuristic"),
        (
            ("--switch", "ADAPTER", "--effort", "none", "--scorer", "heuristic"),
            "a scorer works with effort auto only",
        ),
        (("--switch", "ADAPTER", "--effort", "none", "--thinking-budget", "9"), "does not reason"),
        (("--switch", "SLOW"), "a checkpoint, not an adapter"),
        (("--switch", "nowhere"), "no adapter 'nowhere'"),
        (("--switch", "ADAPTER", "--effort", "none", "--raw"), "leave --raw out"),
    ],
)
def test_bad_thinking_is_refused_before_weights(
    run: Run, adapter: Path, pair: tuple[Path, Path], arguments: tuple[str, ...], message: str
) -> None:
    names = {"ADAPTER": str(adapter), "SLOW": str(pair[0])}
    result = run("generate", pair[0], "-p", "hello", *(names.get(word, word) for word in arguments))
    assert result.code == 2, result.err
    assert message in result.err


@pytest.mark.usefixtures("no_weights_loaded")
def test_an_adapter_for_another_model_is_refused(run: Run, adapter: Path, pair: tuple[Path, Path]) -> None:
    result = run("generate", pair[1], "-p", "hello", "--switch", adapter, "--effort", "none")
    assert result.code == 2
    assert "was made for" in result.err


def test_effort_in_chat(run: Run, adapter: Path, pair: tuple[Path, Path]) -> None:
    script = "hello\n/reset\n/effort none\nhello\n/reset\n/effort\nhello\n"
    result = run("chat", pair[0], "--switch", adapter, "--max-tokens", 8, "--json", stdin=script)
    assert result.code == 0, result.err
    turns = [json.loads(line) for line in result.out.splitlines()]
    assert [turn["stats"]["fast_tokens"] for turn in turns] == [0, 8, 0]
    assert turns[0]["token_ids"] == turns[2]["token_ids"]


def test_it_calibrates(run: Run, adapter: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The problems' answers are the fast mode's own, so that it is right by construction."""
    prompts = [f"the {word} {number}" for word in ("fox", "dog", "quick") for number in range(16)]
    asked = [word for prompt in prompts for word in ("-p", prompt)]
    answers = run("generate", pair[1], *asked, "--max-tokens", 3, "--json", "--batch", 16).out.splitlines()
    texts = [json.loads(line)["text"].strip() or "x" for line in answers]
    lines = [json.dumps({"question": p, "answer": t}) for p, t in zip(prompts, texts, strict=True)]
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(lines))
    start = ("switch", "calibrate", pair[0], "--switch", adapter)
    arguments = (*start, "--problems", file, "--max-tokens", 3, "--floor", 0.5)
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["auto"]["accuracy"] >= 0.5
    assert not list(adapter.parent.glob("*.calibration"))
    assert "with 48 problems intervals are wide" in result.err
    answer = run("generate", pair[0], "-p", prompts[0], "--switch", adapter, "--effort", "auto", "--json")
    assert answer.code == 0, answer.err
    stats = json.loads(answer.out)["stats"]
    assert stats["decision"]["by"] == "probe"
    assert stats["tokens_saved"] == found["always"]["slow"]["tokens"] - stats["output_tokens"]
    for one in (found["auto"], found["escalate"], *found["always"].values()):
        for name in ("accuracy", "tokens", "slow"):
            low, high = one[f"{name}_95"]
            assert low <= one[name] + 1e-9
            assert one[name] <= high + 1e-9
    assert "always slow" in run(*arguments).out
    file.write_text("\n".join(lines[:5]))
    few = run(*arguments)
    assert few.code == 2
    assert "too few" in few.err
    assert "allowed: above 0 to 1" in run(*arguments[:-1], 0).err
    file.write_text('{"question": 1}\n')
    assert "is not a problem" in run(*arguments).err
    assert "no problems 'nowhere'" in run(*start, "--problems", "nowhere").err
    (adapter / "auto.json").write_text("{}")
    broken = run("generate", pair[0], "-p", "a", "--switch", adapter, "--effort", "auto")
    assert "damaged" in broken.err
    (adapter / "auto.json").unlink()


@pytest.fixture
def answering(adapter: Path, tmp_path: Path) -> tuple[Path, Path, list[object]]:
    """A copy of the switch, problems for it, and the command that calibrates on them."""
    mine = shutil.copytree(adapter, tmp_path / "switch", ignore=shutil.ignore_patterns("calibration"))
    file = tmp_path / "problems.jsonl"
    problems = [{"question": f"the {word} {n}", "answer": n} for word in ("fox", "dog") for n in range(20)]
    file.write_text("".join(json.dumps(one) + "\n" for one in problems))
    command = ["switch", "calibrate", "--switch", mine, "--problems", file, "--max-tokens", 3, "--batch", 32]
    return mine, file, command


def test_another_floor_or_judge_answers_nothing_anew(
    run: Run,
    pair: tuple[Path, Path],
    answering: tuple[Path, Path, list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, file, command = answering
    out_of_reach = run(*command, pair[0], "--floor", 1)
    assert out_of_reach.code == 2
    assert "the answers are kept" in out_of_reach.err
    assert not (mine / "auto.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr("justright.engine.llm.LLM.generate_requests", _no_answers)
        all_right = json.dumps({"function": "regex", "regex_pattern": "NEVER", "fallback": "5"})
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"answer": "5"}) + "\n" for row in rows))
        done = run(*command, pair[0], "--filter", all_right, "--floor", 1, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["always"]["fast"]["accuracy"] == 1
        assert run(*command, pair[0], "--filter", all_right, "--floor", 0.5).code == 0
    assert (mine / "auto.json").exists()
    assert not (mine.parent / "switch.calibration").exists()
    [first] = (mine / "calibration").iterdir()
    held = {kept.name: kept.read_bytes() for kept in first.iterdir()}
    assert run(*command, pair[0], "--filter", all_right, "--floor", 0.5, "--max-tokens", 4).code == 0
    assert len(list((mine / "calibration").iterdir())) == 2
    assert {kept.name: kept.read_bytes() for kept in first.iterdir()} == held, "another job's answers stay"


def _no_answers(*_: object) -> None:
    raise AssertionError("the answers are there")


def test_another_jobs_interrupted_answers_stay(
    run: Run,
    pair: tuple[Path, Path],
    answering: tuple[Path, Path, list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from justright.engine.llm import LLM

    mine, _, command = answering
    real, calls = LLM.generate_requests, []

    def once(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("justright.engine.llm.LLM.generate_requests", once)
        assert "are kept in" in run(*command, pair[0], "--floor", 0.01).err
    work = mine.parent / "switch.calibration"
    held = {kept.name: kept.read_bytes() for kept in work.iterdir()}
    assert len(held) == 2
    other = run(*command, pair[0], "--max-tokens", 4)
    assert other.code == 2
    assert "interrupted calibration with other settings (max_tokens differ)" in other.err
    assert {kept.name: kept.read_bytes() for kept in work.iterdir()} == held
    (work / "job.json").unlink()
    (work / "thesis.txt").write_text("years of work")
    assert "is not an interrupted calibration" in run(*command, pair[0]).err
    assert (work / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", "answer": null}', "line 1 of"),
        ('{"question": ["a"], "answer": "b"}', "is not a problem"),
        ('{"question": "a", "answer": true}', "is not a problem"),
        ('["a"]', "is not a problem"),
        ("{", "is not JSON"),
    ],
)
def test_bad_problems_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(CheckpointError, match=message):
        read_questions([str(file)])


def test_problems_of_every_form(tmp_path: Path) -> None:
    """Separators inside a text, a byte order mark, blank lines; numbers as answers; an array of JSON."""
    (tmp_path / "a.JSONL").write_text(
        '\ufeff{"question": "a\u2028b", "answer": 18.0}\r\n\r\n', encoding="utf-8", newline=""
    )
    (tmp_path / "b.json").write_text('[{"question": "c", "answer": "d"}]')
    found = read_questions([str(tmp_path / "a.JSONL"), str(tmp_path / "b.json")])
    assert [(one.question, one.answer) for one in found] == [("a\u2028b", "18.0"), ("c", "d")]

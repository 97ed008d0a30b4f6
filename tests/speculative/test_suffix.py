"""The suffix drafter: its life cycle, its options, and its fallback without the extra."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from justright.errors import MissingExtraError, UsageError
from justright.speculative.suffix import SuffixDrafter, SuffixOptions

needs_arctic = pytest.mark.skipif(
    importlib.util.find_spec("arctic_inference") is None,
    reason="arctic-inference (the extra 'suffix') is not installed",
)
BACKENDS = ["python", pytest.param("arctic", marks=needs_arctic)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_a_copy(backend: str) -> None:
    drafter = SuffixDrafter(SuffixOptions(backend=backend))  # type: ignore[arg-type]
    prompt = list(range(100, 160))
    drafter.start("r", prompt)
    assert len(drafter.propose("r", 8)) == 0
    drafter.observe("r", prompt[:8])
    draft = drafter.propose("r", 6)
    assert list(draft.token_ids) == prompt[8:14]
    assert list(draft.parents) == [-1, 0, 1, 2, 3, 4]
    # One of the two occurrences of the ending is followed by this; the other is the ending itself.
    assert draft.probs == pytest.approx([0.5] * 6)
    assert draft.score == pytest.approx(3.0)
    assert draft.proposal is None
    assert len(drafter.propose("r", 0)) == 0
    drafter.stop("r")


@pytest.mark.parametrize("backend", BACKENDS)
def test_remembers_only_on_request(backend: str) -> None:
    for remember, wanted in ((0, []), (2, [5, 6, 7])):
        drafter = SuffixDrafter(SuffixOptions(backend=backend, remember=remember))  # type: ignore[arg-type]
        drafter.start(1, [100])
        drafter.observe(1, [1, 2, 3, 4, 5, 6, 7])
        drafter.stop(1)
        drafter.start(2, [200])
        drafter.observe(2, [2, 3, 4])
        assert list(drafter.propose(2, 8).token_ids) == wanted
        drafter.stop(2)
        drafter.start(3, [300])  # takes the place of the first
        drafter.observe(3, [2, 3, 4])
        assert list(drafter.propose(3, 8).token_ids) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_life_cycle(backend: str) -> None:
    drafter = SuffixDrafter(SuffixOptions(backend=backend))  # type: ignore[arg-type]
    for call in (
        lambda: drafter.observe(1, [1]),
        lambda: drafter.propose(1, 4),
        lambda: drafter.stop(1),
    ):
        with pytest.raises(UsageError, match="not active"):
            call()
    drafter.start(1, [])
    drafter.observe(1, [3])
    assert len(drafter.propose(1, 4)) == 0
    with pytest.raises(UsageError, match="twice"):
        drafter.start(1, [1])
    drafter.stop(1)
    drafter.start(1, [1, 2])
    for bad in ([-1], [2**31], [0.5], [[1, 2]]):
        with pytest.raises(UsageError, match="invalid token ids"):
            drafter.observe(1, bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("backend", "vllm"),
        ("tree", "yes"),
        ("max_depth", 1),
        ("max_depth", 1025),
        ("max_depth", 8.0),
        ("max_depth", True),
        ("max_spec_factor", -0.1),
        ("max_spec_factor", float("nan")),
        ("max_spec_offset", float("inf")),
        ("min_token_prob", 1.01),
        ("min_token_prob", "0.1"),
        ("remember", -1),
    ],
)
def test_options_out_of_range(option: str, value: object) -> None:
    with pytest.raises(UsageError, match=option) as caught:
        SuffixOptions(**{option: value})  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    assert SuffixDrafter(SuffixOptions(backend="auto")).backend == "python"
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[suffix\]'") as caught:
        SuffixDrafter(SuffixOptions(backend="arctic"))
    assert "C++ compiler" in str(caught.value)
    assert "backend 'python'" in str(caught.value)


@needs_arctic
def test_auto_takes_the_compiled_backend() -> None:
    assert SuffixDrafter().backend == "arctic"


def test_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from justright.speculative.registry import create_drafter\n"
        "create_drafter('suffix').start(0, [1, 2])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "suffix.py"))
    small = ["--prompt-tokens", "64", "--output-tokens", "16", "--repeats", "1", "--backends", "python"]
    script["main"]([*small, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["mode"], row["text"]) for row in rows} == {
        (mode, text) for mode in ("chain", "tree") for text in ("copy", "fresh", "loop")
    }
    script["main"](small)
    assert "propose us" in capsys.readouterr().out

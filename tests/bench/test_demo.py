"""The demo runs, compares and draws, and rejects bad input before work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from justright.bench.demo import TASKS, DemoSetting, run_demo
from justright.bench.demo_picture import save_picture
from justright.errors import MissingExtraError, UsageError


def test_it_writes_results_and_a_picture(tiny_path: Path, tmp_path: Path) -> None:
    told: list[str] = []
    setting = DemoSetting(str(tiny_path), context=4500, tokens=12, repeats=1)
    demo = run_demo(
        setting, tmp_path / "out", progress=lambda what, done, of: told.append(f"{what} {done}/{of}")
    )
    results, picture = demo.files
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(results.read_text())
    assert [name.partition("@")[0] for name in saved["cells"]] == list(TASKS)
    assert {row["suffix"]["agreement"]["verdict"] for row in saved["cells"].values()} == {"identical"}
    assert demo.speed_ratio > 0
    assert demo.acceptance_length >= 1
    assert told[-1] == "done 8/8"


def test_without_matplotlib_it_fails_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"\.\[plots\].*--no-picture"):
        run_demo(DemoSetting("no such model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_rest_works(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    demo = run_demo(DemoSetting(str(tiny_path), context=4500, tokens=4, repeats=1), tmp_path, picture=False)
    assert [file.name for file in demo.files] == ["results.json"]
    with pytest.raises(MissingExtraError):
        save_picture(demo.results, "suffix", tmp_path / "x.png")


def test_plain_against_plain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs one, such as suffix"):
        run_demo(DemoSetting(draft="none"), tmp_path)

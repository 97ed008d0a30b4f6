"""Running the command line in this process, and tiny checkpoints to run it on."""

from __future__ import annotations

import io
import shutil
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from cli_helpers import Result, Run
from justright.cli import main
from tiny import save_tiny

program = cache(get_command)
"""Builds the commands once a process: they take half of the time of a short run."""


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Call ``main`` with arguments (and stdin), as the installed script does."""
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("typer.main.get_command", program)

    def call(*argv: object, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in argv])
        captured = capsys.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model with 512 positions; tests must not change it."""
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def broken(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.fixture
def no_weights_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if weights are loaded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded before the error was found")

    monkeypatch.setattr("justright.engine.model_runner.Verifier.load", refuse)

"""The whole program: fast help, error handling, the version, Ctrl-C and broken pipes."""

from __future__ import annotations

import errno
import json
import signal
import socket
import subprocess
import sys
import urllib.error
from pathlib import Path

import datasets
import httpx
import pytest
import requests
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError

import justright
from cli_helpers import Run
from justright.cli import as_known
from justright.errors import ResourceError, SourceError, UnsupportedModelError, UsageError

COMMANDS = ["generate", "chat", "inspect", "path", "bench", "demo", "prune", "switch"]


def test_help_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import contextlib, io, sys\n"
        "from justright.cli import main\n"
        f"for words in [[], *([name] for name in {COMMANDS})]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*words, '--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_lists_the_commands(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


def test_version(run: Run) -> None:
    assert run("--version").out == f"justright {justright.__version__}\n"


def test_a_bug_is_one_line_that_names_the_debug_option(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("justright.checkpoint.sources.resolve", fail)
    result = run("path", "anything")
    assert result.code == 1
    assert result.err.startswith("error: this is a bug in justright: ZeroDivisionError: oops")
    assert "--debug" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("way", ["option", "environment"])
def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "environment":
        monkeypatch.setenv("JUSTRIGHT_DEBUG", "1")
    result = run(*(["--debug"] if way == "option" else []), "path", "no-such-model")
    assert result.code == 3
    assert "Traceback" in result.err
    assert "error: no model" in result.err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/somewhere/model.safetensors"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EIO, "Input/output error"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
    ids=["disk", "size", "failure", "safetensors", "memory", "torch's memory"],
)
def test_a_lack_of_room_is_a_resource_error(error: Exception) -> None:
    known = as_known(error)
    assert isinstance(known, ResourceError)
    assert known.exit_code == 5


def test_a_path_that_does_not_work_is_no_bug(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "file"):
        with pytest.raises(OSError) as raised:  # noqa: PT011  # which kind does not matter
            path.write_text("x")
        known = as_known(raised.value)
        assert isinstance(known, UsageError)
        assert str(path) in str(known)


def test_known_errors_stay_and_unknown_ones_are_none() -> None:
    error = UnsupportedModelError("x")
    assert as_known(error) is error
    assert as_known(ValueError("x")) is None


def test_interrupt_prints_what_came_and_ends_with_130(tiny_llama: Path) -> None:
    # A tiny model would finish before the signal arrives, so steps are slowed down.
    program = (
        "import time\n"
        "from justright.engine.model_runner import Verifier\n"
        "step = Verifier.step\n"
        "Verifier.step = lambda self, inputs: (time.sleep(0.05), step(self, inputs))[1]\n"
        "from justright.cli import main\n"
        f"main(['generate', {str(tiny_llama)!r}, '-p', 'hello', '--draft', 'none', '--max-tokens', '400'])\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert first + out
    assert b"ended by cancelled" in err
    assert b"Traceback" not in err


def test_a_broken_pipe_is_quiet(tiny_llama: Path) -> None:
    argv = [
        "generate",
        str(tiny_llama),
        "-p",
        "hello",
        "-p",
        "again",
        "--json",
        "--draft",
        "none",
        "--max-tokens",
        "8",
    ]
    command = [sys.executable, "-m", "justright", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        code = process.wait(timeout=60)
    assert code == 141
    assert err == ""


@pytest.mark.parametrize("words", [("-p", "hi", "--max-tokens", "0"), ("-p", "hi", "--foo"), ()])
def test_the_parsers_errors_are_json_too(run: Run, words: tuple[str, ...]) -> None:
    result = run("generate", *(("model",) if words else ()), *words, "--json")
    assert result.code == 2
    error = json.loads(result.out)["error"]
    assert error["exit_code"] == 2
    assert error["message"]
    assert result.err


def _raised_from(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


def network_errors() -> list[Exception]:
    return [
        ConnectionError("Couldn't reach 'gsm8k' on the Hub (OfflineModeIsEnabled)"),
        requests.exceptions.ConnectTimeout("too late"),
        httpx.ConnectError("Name or service not known"),
        httpx.ReadTimeout("too late"),
        urllib.error.URLError("no route"),
        socket.gaierror(-2, "Name or service not known"),
        OfflineModeIsEnabled("offline"),
        LocalEntryNotFoundError("not cached"),
        datasets.exceptions.DatasetNotFoundError("no such data"),
        _raised_from(RuntimeError("while loading"), httpx.ConnectError("down")),
        _raised_from(ValueError("no config"), ConnectionError("down")),
    ]


@pytest.mark.parametrize("error", network_errors(), ids=lambda error: type(error).__name__)
def test_a_missing_network_is_no_bug(error: Exception) -> None:
    known = as_known(error)
    assert isinstance(known, SourceError)
    assert known.exit_code == 3
    assert "network" in str(known)


def test_a_cache_that_cannot_be_written_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUSTRIGHT_CACHE", "/ours")
    monkeypatch.setenv("HF_HOME", "/theirs")
    for number in (errno.EACCES, errno.EROFS):
        for file, name in (
            ("/ours/models/a", "JUSTRIGHT_CACHE"),
            ("/theirs/hub", "HF_HOME"),
            ("/", "JUSTRIGHT_CACHE"),
        ):
            assert f"${name}" in str(as_known(OSError(number, "no", file)))
        assert "$" not in str(as_known(OSError(number, "no", "/else/where")))


def test_a_closed_pipe_is_no_network_error() -> None:
    assert as_known(BrokenPipeError("closed")) is None

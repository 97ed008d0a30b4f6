"""Compiling the kernels: whatever goes wrong is a reason, never an exception, and a damaged library is made again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from justright.kernels import build

HAVE = build.missing()


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_registered", lambda: False)
    build.missing.cache_clear()
    yield
    build.missing.cache_clear()


def compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.missing() == "no C++ compiler (c++, g++, clang++) is on the PATH, and CXX is not set"


def test_a_failed_compilation_gives_its_first_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = '[ "$1" = --version ] && exit 0; echo "in a.h"; echo "a.h:1: error: no such type" >&2; exit 1'
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", script))
    assert (build.missing() or "").endswith("cxx failed: a.h:1: error: no such type")
    assert not list((tmp_path / "cache" / "kernels").glob("*.so"))


def test_a_compiler_that_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert "none" in (build.missing() or "")


@pytest.mark.parametrize("script", ["exit 3", "exec sleep 60"])
def test_a_compiler_that_does_not_give_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    monkeypatch.setattr(build, "_VERSION_TIMEOUT_S", 0.2)
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", script))
    assert "cxx does not run: " in (build.missing() or "")


def test_a_compiler_that_does_not_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_TIMEOUT_S", 0.2)
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", '[ "$1" = --version ] && exit 0; exec sleep 60'))
    assert (build.missing() or "").endswith("cxx did not end within 0.2 s")


def test_a_compiler_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in CXX="ccache g++"; the path has a space, and messages are asked for in English."""
    (tmp_path / "a b").mkdir()
    script = '[ "$2" = --version ] && exit 0; echo "error: $1 $LC_ALL" >&2; printf "\\377" >&2; exit 1'
    path = compiler(tmp_path / "a b" / "cxx", script)
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("CXX", f"'{path}' -m64")
    assert (build.missing() or "").endswith("failed: error: -m64 C")
    assert build._key([path, "-m64"]) != build._key([path, "-O0"])
    monkeypatch.setenv("CXX", path)
    assert build._compiler() == [path]


def test_a_compiler_that_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "'g++")
    build.missing.cache_clear()
    assert "which is not a command: No closing quotation" in (build.missing() or "")


def test_a_kept_library_needs_no_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that it can be used from a folder that cannot be written."""
    monkeypatch.setenv("CXX", path := compiler(tmp_path / "cxx", "exit 0"))
    library = tmp_path / "cache" / "kernels" / f"{build._key([path])}.so"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(build, "_loads", library.samefile)
    monkeypatch.setattr(build, "FileLock", None)
    assert build.missing() is None


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", "exit 0"))
    monkeypatch.setattr(build, "FileLock", refuse)
    assert (build.missing() or "").startswith("no flock (JUSTRIGHT_CACHE can name another folder")


def test_a_cache_that_is_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "file"))
    assert build.missing() is not None


@pytest.mark.skipif(HAVE is not None, reason=str(HAVE))
def test_a_damaged_library_is_compiled_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler is replaced by one that copies the library that the other tests use."""
    monkeypatch.delenv("JUSTRIGHT_CACHE")
    path = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    good = next((build.cache_folder() / "kernels").glob(f"{build._key([path])}.so"))
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    script = f'[ "$1" = --version ] && exit 0; while [ "$1" != -o ]; do shift; done; cp "{good}" "$2"'
    monkeypatch.setenv("CXX", fake := compiler(tmp_path / "cxx", script))
    library = tmp_path / "cache" / "kernels" / f"{build._key([fake])}.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF" + b"\0" * 60)
    # In a process of its own: torch takes the operators of a library only once.
    program = "from justright.kernels.build import missing; print(missing())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert library.read_bytes() == good.read_bytes()

"""Compiles the C++ kernels once for this machine and loads them.

The library lies in the user's cache under a key of everything it depends on: the source, the compiler, the processor
and torch. It is compiled for the processor at hand, so there is one code path and no dispatch at run time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from justright.files import cache_folder

SOURCES = Path(__file__).parent / "cpp"
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 600
_VERSION_TIMEOUT_S = 30


@functools.cache
def missing() -> str | None:
    """Compile and load the kernels, once per process; ``torch.ops.justright`` has them then.

    Returns:
        None, or why there are none: no compiler, a failed compilation, a cache that cannot be written.
    """
    if _registered():
        return None
    try:
        compiler = _compiler()
    except ValueError as error:
        return f"CXX is {os.environ['CXX']!r}, which is not a command: {error}"
    if not compiler:
        return f"no C++ compiler ({', '.join(_COMPILERS)}) is on the PATH, and CXX is not set"
    try:
        key = _key(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{shlex.join(compiler)} does not run: {error}"
    try:
        library = cache_folder() / "kernels" / f"{key}.so"
        if library.exists() and _loads(library):  # also where nothing can be written, so without a lock
            return None
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock"), timeout=_TIMEOUT_S):
            if library.exists() and _loads(library):
                return None
            _compile(compiler, library)
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(compiler)} failed: {_first_error(error.stderr)}"
    except subprocess.TimeoutExpired:
        return f"{shlex.join(compiler)} did not end within {_TIMEOUT_S} s"
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder, a file system without locks
        return f"{error} (JUSTRIGHT_CACHE can name another folder for the compiled library)"
    return None


def _registered() -> bool:
    """Whether this process has the operators: torch ends a process that registers them a second time."""
    return hasattr(torch.ops.justright, "linear")


def _compiler() -> list[str]:
    """The compiler's command: CXX, a path or a command with arguments such as "ccache g++", else the first found."""
    own = os.environ.get("CXX", "").strip()
    if own:
        return [own] if shutil.which(own) else shlex.split(own)
    return [path for path in map(shutil.which, _COMPILERS) if path][:1]


def _loads(library: Path) -> bool:
    """Whether a kept library can be loaded; a damaged one cannot, and is compiled again."""
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def _key(compiler: Sequence[str]) -> str:
    version = _run([*compiler, "--version"], _VERSION_TIMEOUT_S)
    sources = (file.read_text("utf-8") for file in sorted(SOURCES.iterdir()))
    parts = (*sources, version, _processor(), torch.__version__, *_flags(), *compiler[1:])
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: Sequence[str], timeout_s: float) -> str:
    """The output of a compiler, with its messages in English."""
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def _processor() -> str:
    """The processor's instruction sets."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"


def _flags() -> list[str]:
    arm = platform.machine() in ("arm64", "aarch64")
    flags = ["-O3", "-std=c++20", "-fPIC", "-shared", "-mcpu=native" if arm else "-march=native"]
    return [*flags, "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [*flags, "-fopenmp"]


def _compile(compiler: Sequence[str], library: Path) -> None:
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        out = Path(folder) / library.name
        command = [*compiler, *_flags(), *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(out)]
        command += [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
        command += [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
        _run(command, _TIMEOUT_S)
        out.replace(library)


def _first_error(text: str) -> str:
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")

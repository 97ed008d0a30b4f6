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
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from justright.files import cache_folder

SOURCE = Path(__file__).parent / "cpp" / "linear.cpp"
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 600


@functools.cache
def missing() -> str | None:
    """Compile and load the kernels, once per process; ``torch.ops.justright`` has them then.

    Returns:
        None, or why there are none: no compiler, a failed compilation, a cache that cannot be written.
    """
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return f"no C++ compiler ({', '.join(_COMPILERS)}) is on the PATH, and CXX is not set"
    try:
        library = cache_folder() / "kernels" / f"{_key(compiler)}.so"
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if library.exists() and _loads(library):
                return None
            _compile(compiler, library)
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except subprocess.CalledProcessError as error:
        return f"{compiler} failed: {_first_error(error.stderr)}"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None


def _loads(library: Path) -> bool:
    """Whether a kept library can be loaded; a damaged one cannot, and is compiled again."""
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def _key(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = (SOURCE.read_text(), version, _processor(), torch.__version__, *_flags())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


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


def _compile(compiler: str, library: Path) -> None:
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        out = Path(folder) / library.name
        command = [compiler, *_flags(), str(SOURCE), "-o", str(out)]
        command += [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
        command += [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
        out.replace(library)


def _first_error(text: str) -> str:
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")

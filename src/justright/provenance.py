"""The origin of an output: command, code, versions and inputs, written beside it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from justright import __version__
from justright.errors import CheckpointError, SourceError

FILE_NAME = "provenance.json"
PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "numpy", "peft")
# Files of a checkpoint directory that affect results; others (README, licences) do not.
INPUT_PATTERNS = ("*.safetensors", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")


@dataclass(frozen=True)
class Provenance:
    """The origin of an output.

    Attributes:
        argv: the command line.
        justright: the version of this package.
        git_revision: the commit, with ``-dirty`` if files differ from it; None outside a checkout.
        versions: of Python and of the installed packages.
        platform: operating system, machine and Python implementation.
        created: UTC date and time, ISO 8601.
        seed: the random seed; None without randomness.
        inputs: name -> path (``~`` for the home folder) and ``files``: name -> ``size_bytes`` and ``sha256`` (of the
            whole content; null without hashing).
        extra: further facts from the caller: settings, measured numbers.
    """

    argv: list[str]
    justright: str
    git_revision: str | None
    versions: dict[str, str]
    platform: str
    created: str
    seed: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The text of ``provenance.json``."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, default=str) + "\n"

    def write(self, path: Path) -> Path:
        """Write to ``path``, or to ``provenance.json`` in that directory; returns the file's path."""
        target = path / FILE_NAME if path.is_dir() else path
        target.write_text(self.to_json(), encoding="utf-8")
        return target

    @classmethod
    def read(cls, path: Path) -> Provenance:
        """Read a file of `write`. Unknown fields of a later version are kept under ``extra``.

        Raises:
            SourceError: there is no such file.
            CheckpointError: the file is not a provenance record.
        """
        target = path / FILE_NAME if path.is_dir() else path
        if not target.is_file():
            raise SourceError(f"there is no {FILE_NAME} at {path}; give an output of justright")
        try:
            data = dict(json.loads(target.read_text(encoding="utf-8")))
            known = {f.name: data.pop(f.name) for f in fields(cls) if f.name in data}
            known["extra"] = {**known.get("extra", {}), **data}
            return cls(**known)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{target} is not a provenance record of justright: {error}") from error


def collect(
    *,
    inputs: Mapping[str, Path] | None = None,
    seed: int | None = None,
    hash_inputs: bool = True,
    **extra: Any,
) -> Provenance:
    """Record the command line, code, versions and inputs of the running process.

    Args:
        inputs: name -> input file or checkpoint directory, such as ``{"model": path}``.
        seed: the random seed.
        hash_inputs: False records sizes only; hashing reads every byte of the inputs (about 1 GB/s).
        extra: further JSON-ready facts: settings, recipe, numbers.

    Raises:
        SourceError: an input does not exist.
    """
    return Provenance(
        argv=list(sys.argv),
        justright=__version__,
        git_revision=git_revision(),
        versions=installed_versions(),
        platform=f"{platform.platform()} {platform.python_implementation()}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        inputs={name: _describe_input(Path(path), hash_inputs) for name, path in (inputs or {}).items()},
        extra=dict(extra),
    )


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect results, without importing them."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision(package_dir: Path | None = None) -> str | None:
    """The commit of the checkout that justright runs from (``-dirty`` when edited), else None.

    Args:
        package_dir: the package's directory, ``<checkout>/src/justright``; by default the running one.
    """
    package_dir = package_dir or Path(__file__).resolve().parent
    root = package_dir.parent.parent
    if package_dir.parent.name != "src" or not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def file_sha256(path: Path) -> str:
    """The SHA-256 of the whole file, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe_input(path: Path, hashed: bool) -> dict[str, Any]:
    if path.is_dir():
        files = sorted({file for pattern in INPUT_PATTERNS for file in path.glob(pattern) if file.is_file()})
    elif path.is_file():
        files = [path]
    else:
        raise SourceError(f"the input {path} does not exist; give an existing file or directory")
    described = {
        file.name: {"size_bytes": file.stat().st_size, "sha256": file_sha256(file) if hashed else None}
        for file in files
    }
    return {"path": shown_path(path), "files": described}


def shown_path(path: Path) -> str:
    """Return the resolved path with ``~`` for the home folder: a record is passed on with its artefact."""
    home = os.path.realpath(os.path.expanduser("~"))  # works for a user without a home, as in a container
    shown = path.resolve()
    return str(Path("~") / shown.relative_to(home) if shown.is_relative_to(home) else shown)

"""The files of a checkpoint beside its weights; output checks; writing that survives a power cut."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justright.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_CANNOT_WRITE = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than is allowed (`ulimit -f`, or the file system's limit)",
    errno.EIO: "the disk reports an I/O error",
    errno.EROFS: "the file system is read-only",
}

# Files that are copied with a model; weights, code and pickles are never copied as companions.
COMPANIONS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tekken.json",
    "spiece.model",
    "tokenizer.model*",
    "sentencepiece*.model",
    "*.tiktoken",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "*TERMS*",
    "README*",
]


def local_path(text: str | Path) -> Path:
    """A user's path, with ``~`` replaced by the home directory.

    Raises:
        UsageError: an unknown user, or a NUL character.
    """
    if "\0" in str(text):
        raise UsageError(f"{str(text)!r} is not a path: it has a NUL character; give another")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text} cannot be used: {error} Give the whole path, or ./ before the ~") from error


def cache_folder() -> Path:
    """Return the user's cache folder.

    It is ``$JUSTRIGHT_CACHE``, else ``$XDG_CACHE_HOME/justright``, else ``~/.cache/justright``.
    """
    if own := os.environ.get("JUSTRIGHT_CACHE"):
        return local_path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "justright"


def cache_hint(file: str | Path) -> str:
    """Say which variable moves the cache that holds ``file``; empty for files elsewhere."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for folder, name in ((cache_folder(), "JUSTRIGHT_CACHE"), (hub, "HF_HOME")):
        if Path(file).is_relative_to(folder) or folder.is_relative_to(file):
            return f". Set ${name} to a folder that can be written: it moves this cache"
    return ""


def exists(path: Path) -> bool:
    """Whether there is a file or folder; False for names that the file system does not allow."""
    try:
        return path.exists()
    except OSError:
        return False


def cannot_write(error: BaseException) -> ResourceError | None:
    """The error to report if a file could not be written because of the disk; None for other errors.

    safetensors raises its own error, which is no OSError, with the number in its message.
    """
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number not in _CANNOT_WRITE:
        return None
    file = error.filename if isinstance(error, OSError) else None
    where = f" at {file}" if file else ""
    if number == errno.EROFS and file and (hint := cache_hint(file)):
        return ResourceError(f"{_CANNOT_WRITE[number]}{where}{hint}")
    return ResourceError(
        f"{_CANNOT_WRITE[number]}{where}. Free disk space, or write elsewhere, and repeat the command; what is "
        "complete is kept"
    )


def by_number(name: str) -> list[str | int]:
    """A sort key that reads digits as numbers: ``experts.2`` comes before ``experts.10``."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, templates, generation config, licence and model card from one checkpoint to another."""
    for pattern in COMPANIONS:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                copy = target / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                write_durably(copy, file.read_bytes())


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the system lets a directory be synced."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_output(file: Path) -> None:
    """Check before the work that a file can be written.

    Raises:
        UsageError: it is a folder, or its folder does not exist or is read-only.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a folder, but the output is a file; give the file's name too")
    if not file.parent.is_dir():
        raise UsageError(
            f"{file} cannot be written: there is no folder {file.parent}; create it, or give another file"
        )
    if not os.access(file.parent, os.W_OK):
        raise UsageError(
            f"{file} cannot be written: the folder {file.parent} is read-only for you; give another file"
        )


def check_new(out: Path) -> None:
    """Check before the work that an output folder does not exist and can be created.

    Raises:
        UsageError: it exists or cannot be created.
    """
    if out.exists():
        raise UsageError(f"{out} exists already; give another output, or delete it first")
    check_folder(out)


def check_folder(folder: Path) -> None:
    """Check before the work that a folder exists or can be created.

    Raises:
        UsageError: a parent is a file, or is read-only.
    """
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(f"{folder} cannot be created: {parent} is a file; give another folder")
    if not os.access(parent, os.W_OK | os.X_OK) or parent.is_relative_to("/proc"):
        raise UsageError(f"{folder} cannot be created: {parent} is read-only for you; give another folder")


def write_whole(file: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; readable by everybody, unlike those of ``save_file``.

    Raises:
        ResourceError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = file.with_name(file.name + ".partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
        partial.chmod(0o644)
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        raise cannot_write(error) or ResourceError(
            f"{file} cannot be written ({error}); free disk space, or give another folder, and repeat the command"
        ) from error


def job_folder(folder: Path, job: dict[str, Any]) -> Path:
    """Return ``folder``, emptied if its content belongs to another job."""
    text = json.dumps(job, sort_keys=True)
    file = folder / "job.json"
    if folder.exists() and (not file.is_file() or file.read_text(encoding="utf-8") != text):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    return folder


def check_job_folder(folder: Path, job: dict[str, Any], what: str) -> None:
    """Validate that `job_folder` would keep all that a user's folder contains.

    Raises:
        UsageError: it contains other files than ``what``, or those of another job.
    """
    file = folder / "job.json"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not file.is_file():
        raise UsageError(f"{folder} holds files that are not {what}: give a new folder")
    held = json.loads(file.read_text(encoding="utf-8"))
    if differing := [key for key, value in json.loads(json.dumps(job)).items() if held.get(key) != value]:
        raise UsageError(
            f"{folder} holds {what} of another run (different {', '.join(differing)}): give a new folder, or delete "
            "this one"
        )


def swap_folder(folder: Path) -> None:
    """Replace ``folder`` with the complete ``NAME.partial``; `recover_folder` completes an interrupted swap."""
    partial, old = (folder.with_name(folder.name + ending) for ending in (".partial", ".old"))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    partial.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path, last: str) -> None:
    """Complete a `swap_folder` that was killed between its renames: take the new folder if complete, else the old.

    Args:
        folder: as given there.
        last: the file that is written last; a folder that has it is complete.
    """
    for ending in (".partial", ".old"):
        kept = folder.with_name(folder.name + ending)
        if not folder.exists() and (kept / last).exists():
            kept.replace(folder)

"""The files of a checkpoint beside its weights, and writing files so that they survive a power cut."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from justright.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_CANNOT_WRITE = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than is allowed (`ulimit -f`, or the file system's limit)",
    errno.EIO: "the disk reports a failure (an I/O error)",
    errno.EROFS: "the file system is read-only",
}

# What a user needs beside the weights; weights, code and pickles are never copied.
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
    """A path as a user gives it, with ``~`` replaced by a home directory.

    Raises:
        UsageError: no such user, or characters that no path has.
    """
    if "\0" in str(text):
        raise UsageError(f"{str(text)!r} is no path: it holds a NUL character; give another")
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


def exists(path: Path) -> bool:
    """Whether there is a file or folder; a name that the file system cannot hold is that of none."""
    try:
        return path.exists()
    except OSError:
        return False


def cannot_write(error: BaseException) -> ResourceError | None:
    """The error to report where a file could not be written for want of room or a sound disk; None for others.

    safetensors says it in the words of its own error, which is no OSError.
    """
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number not in _CANNOT_WRITE:
        return None
    where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return ResourceError(
        f"{_CANNOT_WRITE[number]}{where}: make room, or write elsewhere, and repeat the command; what is complete is "
        "kept"
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
    """Refuse a file that cannot be written, before the work that fills it.

    Raises:
        UsageError: it is a folder, or its folder does not exist or may not be written to.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a folder, and a file is to be written: give the file's name too")
    if not file.parent.is_dir():
        raise UsageError(
            f"{file} cannot be written: there is no folder {file.parent}; make it, or give another file"
        )
    if not os.access(file.parent, os.W_OK):
        raise UsageError(
            f"{file} cannot be written: the folder {file.parent} is read-only for you; give another file"
        )


def check_new(out: Path) -> None:
    """Refuse an output folder that exists, or cannot be made, before the work that fills it.

    Raises:
        UsageError: that.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another output, or remove it first")
    check_folder(out)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made, before the work that fills it.

    Raises:
        UsageError: something on its way is no folder, or may not be written to.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"{folder} cannot be made: {there} is a file; give another folder")
    if not os.access(there, os.W_OK | os.X_OK) or there.is_relative_to("/proc"):
        raise UsageError(f"{folder} cannot be made: {there} is read-only for you; give another folder")


def write_whole(file: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """safetensors' ``save_file``, whose refusals are errors of ours.

    Raises:
        ResourceError: the disk is full, or the file cannot be written for another reason.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, metadata)
    except (OSError, SafetensorError) as error:
        raise cannot_write(error) or ResourceError(
            f"{file} cannot be written ({error}): make room, or give another folder, and repeat the command"
        ) from error


def swap_folder(folder: Path) -> None:
    """Put ``NAME.partial``, complete, in the place of ``folder``; `recover_folder` mends it if killed half-way."""
    partial, old = (folder.with_name(folder.name + ending) for ending in (".partial", ".old"))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    partial.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path, last: str) -> None:
    """Where a kill fell between the two renames of `swap_folder`, take the new one if it is whole, else the old one.

    Args:
        folder: as given there.
        last: the file that is written last: a folder that has it is whole.
    """
    for ending in (".partial", ".old"):
        kept = folder.with_name(folder.name + ending)
        if not folder.exists() and (kept / last).exists():
            kept.replace(folder)

"""Bundles: a model, its switch, its drafter and its defaults in one directory with a manifest.

DIR/                   the model's checkpoint, readable by any loader
    justright.json     the manifest
    switch/            the adapter to its fast counterpart, if any
    draft/             the drafter, if any
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from justright.checkpoint.finite import check_finite_weights
from justright.checkpoint.format import damaged
from justright.checkpoint.mode_files import TEMPLATE_FILES
from justright.checkpoint.reader import Checkpoint, read_json
from justright.checkpoint.writer import DISK_MARGIN_BYTES, leave, take_lock
from justright.errors import CheckpointError, ResourceError, UsageError
from justright.files import COMPANIONS, check_new, local_path, sync_folder, write_durably
from justright.progress import ProgressCallback
from justright.provenance import Provenance, file_sha256
from justright.readable import readable_bytes

MANIFEST = "justright.json"
FORMAT = "justright-bundle-1"
PARTS = ("switch", "draft")

# Besides the weights and `COMPANIONS`: documentation, licences in any format, pictures of the model card.
_TOLD = [*COMPANIONS, "*.json", "*.txt", "*.md", "*.html", "*.png"]
_NEVER = {MANIFEST, "adapter_config.json"}  # transformers auto-loads an adapter beside the weights


@dataclass(frozen=True, slots=True)
class BundleCheck:
    """Differences between a bundle's files and its manifest; all fields are empty if there are none.

    Attributes:
        missing: Files in the manifest only.
        changed: Files of another size or content.
        added: Files in the directory only.
    """

    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all bundled files exist unchanged."""
        return not self.missing and not self.changed


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle, as its manifest describes it.

    Attributes:
        path: Directory of the bundle.
        verifier: `weights_identity` of the model.
        parts: Part of `PARTS` -> its origin and description.
        templates: "chat" -> file of the model's chat template, "fast" -> file of the fast mode's.
        defaults: Default run settings, see `justright.engine.defaults`.
        files: Path in the directory -> ``size_bytes`` and ``sha256``.
        provenance: How the bundle was made.
    """

    path: Path
    verifier: str
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read a bundle's manifest and no other file.

        Raises:
            UsageError: The directory is not a bundle.
            CheckpointError: The manifest is damaged, or of another format.
        """
        file = path / MANIFEST
        if not file.is_file():
            raise UsageError(
                f"{path} is not a bundle: it has no {MANIFEST}. Make one with `justright bundle MODEL -o DIR`"
            )
        data = read_json(file)
        if data.get("format") != FORMAT:
            raise CheckpointError(
                f"{file} has format {data.get('format')!r}, but this version reads {FORMAT!r}: update justright, or "
                "make the bundle again"
            )
        names = ("parts", "templates", "defaults", "files", "provenance")
        for name in ("verifier", *names):
            if not isinstance(data.get(name), str if name == "verifier" else dict):
                raise damaged(file, f"its {name} is {data.get(name)!r}")
        for name in [*data["files"], *data["templates"].values()]:
            if not _inside(name):
                raise CheckpointError(f"{file} names {name!r}; allowed: files inside the bundle")
        for name, entry in data["files"].items():
            known = entry if isinstance(entry, dict) else {}
            if type(known.get("size_bytes")) is not int or not isinstance(known.get("sha256"), str):
                raise damaged(file, f"its entry of {name} is {entry!r}")
        return cls(path, data["verifier"], **{name: data[name] for name in names})

    def part(self, name: str) -> Path | None:
        """Folder of a part; None if the bundle does not have the part.

        Raises:
            CheckpointError: The manifest names the part, but its folder is missing.
        """
        if name not in self.parts:
            return None
        folder = self.path / name
        if not folder.is_dir():
            raise CheckpointError(f"{self.path} has no {name} folder: fetch or copy the whole bundle again")
        return folder

    def size_bytes(self, part: str | None = None) -> int:
        """Bytes of all files, or of one part ("model": all files outside switch and drafter)."""
        return sum(
            about["size_bytes"] for name, about in self.files.items() if part in (None, part_of_file(name))
        )

    def verify(self, tick: ProgressCallback = lambda *_: None, *, hashes: bool = True) -> BundleCheck:
        """Compare the size of every file with the manifest and, with ``hashes``, its content."""
        missing, changed, done = [], [], 0
        total = self.size_bytes()
        for name, about in self.files.items():
            file = self.path / name
            if not file.is_file():
                missing.append(name)
            elif file.stat().st_size != about["size_bytes"] or (
                hashes and file_sha256(file) != about["sha256"]
            ):
                changed.append(name)
            done += about["size_bytes"]
            tick("verifying", done, total)
        there = {str(file.relative_to(self.path).as_posix()) for file in _walk(self.path)}
        added = sorted(there - set(self.files) - {MANIFEST})
        return BundleCheck(tuple(missing), tuple(changed), tuple(added))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        names = ("verifier", "parts", "templates", "defaults", "files", "provenance")
        return {"format": FORMAT} | {name: getattr(self, name) for name in names}


def is_bundle(path: Path) -> bool:
    """Whether a directory is a bundle."""
    return (path / MANIFEST).is_file()


def bundled_part(path: Path | None, name: str) -> Path | None:
    """Folder of a part if ``path`` is a bundle with this part, else None.

    Raises:
        CheckpointError: See `Bundle.open` and `Bundle.part`.
    """
    return Bundle.open(path).part(name) if path is not None and is_bundle(path) else None


def check_bundled_weights(checkpoint: Checkpoint) -> None:
    """Read the model weights of a bundle once and validate them; skip any other checkpoint.

    Raises:
        CheckpointError: A weight is NaN or infinite.
    """
    if is_bundle(checkpoint.path):
        check_finite_weights(checkpoint)


def part_of_file(name: str) -> str:
    """Part that a bundled file belongs to; "model" for files outside switch and drafter."""
    first = PurePosixPath(name).parts[0]
    return first if first in PARTS else "model"


def write_bundle(
    out: Path,
    model: Path,
    parts: Mapping[str, Path],
    *,
    verifier: str,
    about: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Any],
    provenance: Provenance,
    copy: bool = False,
    tick: ProgressCallback = lambda *_: None,
) -> Bundle:
    """Assemble a bundle in ``OUT.partial``; it gets its final name once complete.

    After an interruption, the same call resumes after the last copied file. Other files in ``OUT.partial`` (the shards
    of an interrupted `prune`) are kept. Weights are hard links if the file system supports them; the bundle and its
    sources then share the data.

    Args:
        out: Directory to create.
        model: Checkpoint directory.
        parts: Part of `PARTS` -> its folder.
        verifier: `weights_identity` of the model.
        about: Part -> its description in the manifest.
        defaults: Default run settings for the manifest.
        provenance: Provenance for the manifest.
        copy: Copy all files instead of linking weights.
        tick: Progress callback.

    Raises:
        UsageError: ``out`` exists, or another process is writing it.
        ResourceError: The disk has too little space for the copied files.
    """
    out = Path(os.path.abspath(local_path(out)))
    check_new(out)
    work = out.with_name(out.name + ".partial")
    work.mkdir(parents=True, exist_ok=True)
    lock = take_lock(work)
    try:
        staging = work / "bundle"
        sources = _sources(model, parts)
        _place(sources, staging, copy=copy, tick=tick)
        files = _hashed(staging, sources, tick)
        templates = _templates(files)
        bundle = Bundle(out, verifier, about, templates, defaults, files, provenance.to_dict())
        text = json.dumps(bundle.to_dict(), indent=1, ensure_ascii=False, default=str) + "\n"
        write_durably(staging / MANIFEST, text.encode())
        for folder in (staging, *(staging / name for name in parts)):
            sync_folder(folder)
        check_new(out)
        staging.rename(out)
        sync_folder(out.parent)
    except BaseException:
        lock.release()
        raise
    leave(work, lock)
    return bundle


def bundled_files(model: Path, parts: Mapping[str, Path]) -> dict[str, int]:
    """Files that a bundle will hold besides its manifest: path in the bundle -> bytes."""
    return {name: file.stat().st_size for name, file in _sources(model, parts).items()}


def _sources(model: Path, parts: Mapping[str, Path]) -> dict[str, Path]:
    """Path in the bundle -> source file. If the model is itself a bundle, only its checkpoint counts."""
    with Checkpoint.open(model) as checkpoint:
        found = {file.name: file for file in checkpoint.files()}
    for pattern in _TOLD:
        for file in sorted(model.glob(pattern)):
            if file.is_file() and file.name not in _NEVER:
                found.setdefault(file.relative_to(model).as_posix(), file)
    for part, folder in parts.items():
        listed = {
            file for pattern in (*_TOLD, "*.safetensors") for file in folder.glob(pattern) if file.is_file()
        }
        found |= {f"{part}/{file.relative_to(folder).as_posix()}": file for file in sorted(listed)}
    return {name: file.resolve() for name, file in sorted(found.items())}


def _place(sources: Mapping[str, Path], staging: Path, *, copy: bool, tick: ProgressCallback) -> None:
    """Link or copy missing files, and remove files that do not belong to the bundle."""
    for file in list(_walk(staging)):
        name = file.relative_to(staging).as_posix()
        if name not in sources or not _same(sources[name], file, linked=_linked(name, copy=copy)):
            file.unlink()
    waiting = {name: file for name, file in sources.items() if not (staging / name).exists()}
    for name in sources:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
    for name, file in list(waiting.items()):
        if _linked(name, copy=copy):
            with contextlib.suppress(OSError):  # other file system, no links, or too many: copy
                os.link(file, staging / name)
                del waiting[name]
    sizes = {name: file.stat().st_size for name, file in waiting.items()}
    needed, free = sum(sizes.values()) + DISK_MARGIN_BYTES, shutil.disk_usage(staging).free
    if free < needed:
        raise ResourceError(
            f"the disk of {staging.parent} has {readable_bytes(free)} free, but {readable_bytes(needed)} are needed. "
            "Free some space, or write to the disk of the model, where files are linked"
        )
    done = 0
    for name, file in waiting.items():
        _copy(file, staging / name)
        done += sizes[name]
        tick("copying", done, sum(sizes.values()))


def _copy(source: Path, target: Path) -> None:
    """Copy a file atomically and keep the source's modification time, which `_same` compares."""
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    shutil.copystat(source, partial)
    partial.chmod(0o644)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)


def _linked(name: str, *, copy: bool) -> bool:
    """Whether to hard-link a file: weights yes; text files no, because users may edit them in place."""
    return not copy and name.endswith((".safetensors", ".gguf"))


def _same(source: Path, placed: Path, *, linked: bool) -> bool:
    """Whether a bundled file is a complete copy of the source, or a permitted link to it."""
    one, other = source.stat(), placed.stat()
    if source.samefile(placed):
        return linked
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _hashed(staging: Path, sources: Mapping[str, Path], tick: ProgressCallback) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    total = sum((staging / name).stat().st_size for name in sources)
    done = 0
    for name in sources:
        size = (staging / name).stat().st_size
        found[name] = {"size_bytes": size, "sha256": file_sha256(staging / name)}
        done += size
        tick("hashing", done, total)
    return found


def _templates(files: Mapping[str, Any]) -> dict[str, str]:
    """Find the files of the chat templates; older checkpoints store the template in the tokenizer config."""
    chat = next((name for name in TEMPLATE_FILES if name in files), None)
    found = {"chat": chat, "fast": "switch/chat_template.jinja"}
    return {mode: name for mode, name in found.items() if name in files and name is not None}


def _walk(folder: Path) -> Iterator[Path]:
    """List all files of a bundle except hidden ones (of version control, of the hub)."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file


def _inside(name: Any) -> bool:
    """Whether a name is a path below the bundle's directory."""
    path = PurePosixPath(name) if isinstance(name, str) and name else PurePosixPath("/")
    return not path.is_absolute() and ".." not in path.parts

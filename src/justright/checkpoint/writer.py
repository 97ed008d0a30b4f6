"""Write sharded checkpoints atomically; an interrupted run can resume.

OUT.partial/                 while writing; may be deleted to start over
    journal.jsonl            line 1: the job; then one line per complete shard
    lock                     one writer at a time
    checkpoint/              renamed to OUT once every byte is on disk
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from justright.checkpoint import sparse
from justright.checkpoint.format import INDEX, SINGLE, read_header
from justright.checkpoint.shard_writer import MAX_HEADER_ROOM, ShardFile, dtype_name, header_room
from justright.errors import CheckpointError, ResourceError, UsageError
from justright.files import (
    cannot_write,
    check_new,
    copy_companions,
    local_path,
    sync_folder,
    write_durably,
)
from justright.provenance import FILE_NAME as PROVENANCE
from justright.provenance import Provenance
from justright.readable import differences

if TYPE_CHECKING:
    import torch

FORMAT = 1
Store = Literal["dense", "sparse"]
_METADATA = {"format": "pt"}  # transformers requires it
DISK_MARGIN_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class _Shard:
    """A journal line: a shard that is complete on disk."""

    names: list[str]
    size_bytes: int
    data_bytes: int


class CheckpointWriter:
    """Writes a checkpoint directory one tensor at a time; use it in a ``with`` block.

    Life cycle: the constructor opens ``OUT.partial`` and resumes an interrupted run of the same job, :meth:`add`
    appends tensors, :meth:`finish` gives the directory its final name. Leaving the block without ``finish``
    (an error, Ctrl-C, kill -9) creates no final directory and keeps the complete shards. The same job, adding
    the same tensors in the same order, then resumes after them and produces the same bytes.

    Args:
        out: Directory to create.
        fingerprint: Identity of the job, JSON-ready: source, method, settings. Only a job with an equal
            fingerprint resumes interrupted work.
        source: Checkpoint directory from which the tokenizer, templates, licence and similar files are copied.
        max_shard_bytes: Maximum size of a shard; one larger tensor becomes a shard of its own.
        expected_bytes: Size of all tensors; if given, the free disk space is validated first.
        store: "sparse": a container of `justright.checkpoint.sparse`.

    Raises:
        UsageError: ``out`` exists, another process is writing it, or interrupted work is of another job.
        ResourceError: The disk has less free space than ``expected_bytes`` needs.
    """

    def __init__(
        self,
        out: Path | str,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        source: Path | None = None,
        max_shard_bytes: int = 5_000_000_000,
        expected_bytes: int | None = None,
        store: Store = "dense",
    ) -> None:
        if max_shard_bytes <= 0:
            raise UsageError(f"max_shard_bytes {max_shard_bytes}; allowed: whole numbers from 1")
        self.out = Path(os.path.abspath(local_path(out)))
        self.partial = self.out.with_name(self.out.name + ".partial")
        self._source = source
        self.store = store
        self._max_shard_bytes = max_shard_bytes
        self._room = header_room(min(max_shard_bytes, expected_bytes or max_shard_bytes))
        if store == "sparse":  # three header entries per tensor
            self._room = min(4 * self._room, MAX_HEADER_ROOM)
        self._job = {
            "format": FORMAT,
            "max_shard_bytes": max_shard_bytes,
            "header_room": self._room,
            "metadata": _METADATA,
            "store": store,
            "fingerprint": json.loads(json.dumps(dict(fingerprint or {}), default=str)),
        }
        self._current: ShardFile | None = None
        self._added: set[str] = set()
        self._finished = False
        with self._disk():
            check_new(self.out)
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self.partial)
        try:
            with self._disk():
                check_new(self.out)
                self._shards = self._take_up()
                self._check_room(expected_bytes)
        except BaseException:
            self._lock.release()
            raise
        self._done = frozenset(name for shard in self._shards for name in shard.names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors on disk so far."""
        current = self._current.data_bytes if self._current is not None else 0
        return sum(shard.data_bytes for shard in self._shards) + current

    def done(self) -> frozenset[str]:
        """Return the names of the tensors that an interrupted run has already written safely."""
        return self._done

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor; skip it if it is in :meth:`done`.

        Raises:
            UsageError: The name was added before, safetensors cannot store the tensor, or the writer is finished.
            ResourceError: The disk is full; complete shards are kept, and the same job resumes after them.
        """
        if self._finished:
            raise UsageError(f"{name} cannot be added: {self.out} is already finished")
        if name in self._added or name == "__metadata__":
            raise UsageError(f"{name} cannot be added: the name is already used")
        dtype_name(name, tensor)
        self._added.add(name)
        for part, stored in (sparse.pack(name, tensor) if self.store == "sparse" else {name: tensor}).items():
            if part not in self._done:
                with self._disk():
                    self._shard_for(part, stored).append(part, stored)

    def finish(
        self,
        config: Mapping[str, Any],
        *,
        provenance: Provenance | None = None,
        files: Mapping[str, str | bytes] | None = None,
    ) -> Path:
        """Write the files beside the weights and give the directory its final name.

        Args:
            config: The content of ``config.json``.
            provenance: Written as ``provenance.json``.
            files: Further files by name (a model card, a manifest); they replace copied files of that name.

        Returns:
            The final directory.

        Raises:
            UsageError: No tensor was added, or ``out`` was created in the meantime.
            ResourceError: The disk is full.
        """
        with self._disk():
            self._complete_shard()
            if not self._shards:
                raise UsageError(f"no tensor was added: {self.out} would be an empty checkpoint")
            if self._source is not None:
                copy_companions(self._source, self._folder)
            contents: dict[str, str | bytes] = {**(files or {}), "config.json": _json(dict(config))}
            if provenance is not None:
                contents[PROVENANCE] = provenance.to_json()
            contents |= self._name_shards()
            for name, content in contents.items():
                write_durably(self._folder / name, content.encode() if isinstance(content, str) else content)
            sync_folder(self._folder)
            check_new(self.out)
            os.rename(self._folder, self.out)
            sync_folder(self.out.parent)
        self._finished = True
        self.close()
        return self.out

    def close(self) -> None:
        """Release files and lock; keep interrupted work, remove the work folder of finished work."""
        if self._current is not None:
            self._current.abandon()
            self._current = None
        self._lock.release()
        if self._finished:
            shutil.rmtree(self.partial, ignore_errors=True)

    # --- shards

    @property
    def _folder(self) -> Path:
        return self.partial / "checkpoint"

    def _shard_path(self, number: int) -> Path:
        return self._folder / f"shard-{number:05d}.safetensors"

    def _shard_for(self, name: str, tensor: torch.Tensor) -> ShardFile:
        if self._current is not None and not self._current.fits(
            name, tensor, max_bytes=self._max_shard_bytes
        ):
            self._complete_shard()
        if self._current is None:
            path = self._shard_path(len(self._shards) + 1)
            self._current = ShardFile(path, room=self._room, metadata=_METADATA)
            if not self._current.fits(name, tensor, max_bytes=self._max_shard_bytes):
                raise UsageError(
                    f"the tensor name {name[:40]}... has {len(name)} characters, too many for a header: shorten it"
                )
        return self._current

    def _complete_shard(self) -> None:
        if self._current is None:
            return
        shard, self._current = self._current, None
        try:
            size_bytes = shard.complete()
        except BaseException:
            shard.abandon()
            raise
        sync_folder(self._folder)
        self._shards.append(_Shard(shard.names, size_bytes, shard.data_bytes))
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(_line(vars(self._shards[-1])))
            journal.flush()
            os.fsync(journal.fileno())

    def _name_shards(self) -> dict[str, str | bytes]:
        """Give the shards their final names; return the index to write (nothing for a single shard)."""
        finals = _final_names(len(self._shards), self.store)
        for number, final in enumerate(finals, 1):
            os.replace(self._shard_path(number), self._folder / final)
        if len(finals) == 1:
            return {}
        pairs = zip(finals, self._shards, strict=True)
        weight_map = {name: final for final, shard in pairs for name in shard.names}
        total = sum(shard.data_bytes for shard in self._shards)
        index = INDEX if self.store == "dense" else sparse.INDEX
        return {index: _json({"metadata": {"total_size": total}, "weight_map": weight_map})}

    # --- interrupted work

    @property
    def _journal(self) -> Path:
        return self.partial / "journal.jsonl"

    def _take_up(self) -> list[_Shard]:
        """Resume: keep the complete shards of an interrupted run of this job, and remove its other files."""
        lines = _read_lines(self._journal) if self._folder.exists() else []
        if lines and lines[0] != self._job:
            raise UsageError(
                f"{self.partial} holds an interrupted run with other settings ({_difference(lines[0], self._job)}). "
                f"Repeat that run's command to finish it, choose another output, or delete {self.partial}"
            )
        self._folder.mkdir(exist_ok=True)
        recorded = [_Shard(**line) for line in lines[1:]]
        for number, final in enumerate(_final_names(len(recorded), self.store), 1):
            if (self._folder / final).exists():  # interrupted in `finish`: restore the name
                os.replace(self._folder / final, self._shard_path(number))
        kept: list[_Shard] = []
        while len(kept) < len(recorded) and _intact(self._shard_path(len(kept) + 1), recorded[len(kept)]):
            kept.append(recorded[len(kept)])
        paths = {self._shard_path(number) for number in range(1, len(kept) + 1)}
        for stray in set(self._folder.iterdir()) - paths:
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
        fresh = self._journal.with_suffix(".new")
        write_durably(fresh, "".join(map(_line, [self._job, *map(vars, kept)])).encode())
        os.replace(fresh, self._journal)
        sync_folder(self.partial)
        return kept

    # --- room

    def _check_room(self, expected_bytes: int | None) -> None:
        if expected_bytes is None:
            return
        written = sum(shard.data_bytes for shard in self._shards)
        needed = max(expected_bytes - written, 0) + DISK_MARGIN_BYTES
        free = shutil.disk_usage(self.partial).free
        if free < needed:
            raise ResourceError(
                f"the disk of {self.out.parent} has {free:,} bytes free, but {needed:,} are needed. Free some space, "
                "or choose another disk"
            )

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Convert file system errors into errors that say what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise UsageError(f"{self.out} cannot be written ({error}): choose another output") from error
            if (full := cannot_write(error)) is not None:
                raise ResourceError(f"{self.partial} could not be written: {full}") from error
            raise


def take_lock(partial: Path) -> Any:
    """Lock a work folder; ``release`` of the lock, or the end of the process, unlocks it.

    Raises:
        UsageError: Another process holds the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(partial / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another process is writing {partial}: wait for it, or choose another output"
        ) from None
    return lock


def leave(partial: Path, lock: Any) -> None:
    """Release a lock and remove its file; remove the folder too if it is empty."""
    with contextlib.suppress(OSError):  # still held, so this cannot remove another process's lock
        (partial / "lock").unlink(missing_ok=True)
    lock.release()
    with contextlib.suppress(OSError):
        partial.rmdir()


def _final_names(count: int, store: Store) -> list[str]:
    single = SINGLE if store == "dense" else sparse.SINGLE
    if count == 1:
        return [single]
    stem = single.removesuffix(".safetensors")
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _intact(path: Path, shard: _Shard) -> bool:
    try:
        names = [info.name for info in read_header(path).tensors]
    except CheckpointError:
        return False
    return path.stat().st_size == shard.size_bytes and sorted(names) == sorted(shard.names)


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    """Return the journal's lines before the first incomplete one."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError, ValueError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    return lines


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    changed = list(differences(theirs, ours).items())[:4]
    return "; ".join(
        f"{key.removeprefix('fingerprint.')}: {there!r} there, {now!r} now" for key, (there, now) in changed
    )


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _line(data: Any) -> str:
    return json.dumps(data) + "\n"

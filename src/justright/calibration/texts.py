"""Calibration sets: resolve sources to texts, cut them into token windows, and mix them by share.

A source is a text file, a file of JSON lines or JSON (`justright.records`) whose rows have a field ``text`` or
``messages`` (a conversation, rendered with the model's own chat template), a folder of such files, a set in an
installed package (found through entry points: ``zoo``, or one domain of it, ``zoo:python``), or
``hub:OWNER/NAME[:SPLIT[:COLUMN]]``. A suffix ``=SHARE`` sets the source's share of the sequences; by default all
shares are equal.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justright.errors import (
    CheckpointError,
    JustrightError,
    MissingExtraError,
    SourceError,
    UsageError,
    install_command,
)
from justright.files import local_path
from justright.records import (
    CONVERSATION,
    SUFFIXES,
    bare_text,
    conversation,
    files_below,
    is_data,
    read_rows,
    read_text,
    skipped_note,
)

CARRIED = "justright.calibration"
"""Entry-point group: a package's folder of calibration texts (a `pathlib.Path`), one file per domain."""

Text = str | list[dict[str, Any]]
"""A text, or a conversation: ``[{"role": ..., "content": ...}, ...]``, as `justright.records.conversation` gives it."""

_SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".h", *SUFFIXES)


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Token windows to run a model on.

    Attributes:
        ids: ``[sequences, length]`` int64.
        sources: Source -> number of sequences.
        fingerprint: SHA-256 of the ids; it covers tokenizer, texts, shares and lengths.
    """

    ids: Tensor
    sources: dict[str, int]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TextSource:
    """One source and its share (before normalisation to a sum of 1)."""

    name: str
    share: float


def parse(names: Sequence[str]) -> list[TextSource]:
    """Parse sources ``NAME`` or ``NAME=SHARE``; the name of a packaged set selects all of its domains.

    Raises:
        UsageError: A share is not a positive number.
    """
    found = []
    for text in names:
        name, equals, share = text.rpartition("=")
        if not equals or Path(text).exists():
            name, share = text, "1"
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not (0 < value < float("inf")) or not name:
            raise UsageError(f"calibration {text!r}; allowed: NAME or NAME=SHARE, with a share above 0")
        domains = (
            [f"{name}:{file.stem}" for file in _files(folder)[0]] if (folder := _carried(name)) else [name]
        )
        found += [TextSource(domain, value / len(domains)) for domain in domains]
    return found


def build(tokenizer: Any, names: Sequence[str], sequences: int, length: int, seed: int = 0) -> CalibrationSet:
    """Build ``sequences`` windows of ``length`` tokens, spread evenly over each source.

    Args:
        tokenizer: Tokenizer of the model to run.
        names: Sources, as for `parse`.
        sequences: Total number of windows; each source gets its share, rounded so that the sum is exact.
        length: Tokens per window.
        seed: Seed of the window positions: each source is divided into equal stretches, with one random window each.

    Raises:
        SourceError: A source cannot be found.
        UsageError: A source has fewer tokens than its windows need.
    """
    if sequences < 1 or length < 2:
        raise UsageError(f"{sequences} sequences of {length} tokens; allowed: 1 or more of 2 or more tokens")
    sources = parse(names)
    counts = _divide([s.share for s in sources], sequences)
    windows = []
    for source, count in zip(sources, counts, strict=True):
        if count:
            windows.append(_windows(tokenizer, source.name, count, length, seed))
    ids = torch.cat(windows)
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    named = {source.name: count for source, count in zip(sources, counts, strict=True)}
    return CalibrationSet(ids, named, digest)


def read_texts(name: str) -> Iterator[Text]:
    """Read the texts and conversations of one source.

    Raises:
        SourceError: The source cannot be found or read.
        CheckpointError: A JSON line has neither a text nor a conversation.
    """
    if name.startswith("hub:"):
        yield from _hub(name.removeprefix("hub:"))
        return
    path = local_path(name)
    carrier, _, domain = name.partition(":")
    folder = _carried(carrier)
    if folder is not None and not path.exists():
        path = folder / f"{domain}.jsonl" if domain else folder
        if not path.exists():
            raise SourceError(
                f"{carrier} has no calibration texts {domain!r}; available: "
                f"{', '.join(f.stem for f in _files(folder)[0])}"
            )
    if path.is_dir():
        files, _ = _files(path)
        if not files:
            raise SourceError(f"{path} has no calibration texts; allowed: {', '.join(_SUFFIXES)}")
        for file in files:
            yield from _file_texts(file)
    elif path.is_file():
        yield from _file_texts(path)
    else:
        carried = sorted(point.name for point in importlib.metadata.entry_points(group=CARRIED))
        raise SourceError(
            f"no calibration texts {name!r}: give a file, a folder, hub:OWNER/NAME, or one of "
            f"{', '.join(carried) or '(no installed package has any)'}"
        )


def _divide(shares: Sequence[float], total: int) -> list[int]:
    """Divide ``total`` into integers in proportion to ``shares`` (largest remainders first)."""
    exact = [share / sum(shares) * total for share in shares]
    counts = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _windows(tokenizer: Any, name: str, count: int, length: int, seed: int) -> Tensor:
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ids: list[int] = []
    for found in read_texts(name):
        text = found if isinstance(found, str) else _conversation(tokenizer, found)
        if text.strip():
            ids += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *end]
        if name.startswith("hub:") and len(ids) >= count * length:
            break
    available = len(ids) // length
    if available < count:
        raise UsageError(
            f"the calibration texts {name} have {len(ids):,} tokens, enough for {available} sequences of {length}, but "
            f"{count} are requested: give more text, or lower --sequences or --length"
        )
    rng = random.Random(f"{seed} {Path(name).name}")  # independent of the folder of the file
    bounds = [i * available // count for i in range(count + 1)]
    starts = [rng.randrange(low, high) * length for low, high in itertools.pairwise(bounds)]
    return torch.tensor([ids[start : start + length] for start in starts])


def _conversation(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    """Render a conversation with the model's template, if any, without the end token that `_windows` adds."""
    if tokenizer.chat_template is None:
        return bare_text(messages)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False)).rstrip()
    return text.removesuffix(tokenizer.eos_token or "")


def _carried(name: str) -> Path | None:
    for point in importlib.metadata.entry_points(group=CARRIED):
        if point.name == name:
            return Path(point.load())
    return None


def notes(names: Sequence[str]) -> list[str]:
    """Describe the files that are skipped in the folders among these sources (as for `parse`)."""
    found = []
    for source in parse(names):
        folder = Path(source.name).expanduser()
        if folder.is_dir() and (skipped := _files(folder)[1]):
            found.append(skipped_note(folder, skipped, _SUFFIXES))
    return found


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the text files below a folder, and its other files.

    A ``.json`` file that does not begin with a text or a conversation counts as a settings file.
    """
    files, others = files_below(folder, _SUFFIXES)
    settings = [file for file in files if _settings(file)]
    return [file for file in files if file not in settings], others + settings


def _settings(file: Path) -> bool:
    if file.suffix.lower() != ".json":
        return False
    try:
        return next((_text(row) for _, row in read_rows(file)), None) is None
    except JustrightError:
        return True


def _file_texts(file: Path) -> Iterator[Text]:
    if not is_data(file):
        yield read_text(file)
        return
    for where, row in read_rows(file):
        found = _text(row)
        if found is None:
            raise CheckpointError(
                f'{where} is not a text; allowed: {{"text": "..."}} or {{"messages": {CONVERSATION}}}'
            )
        yield found


def _text(row: Any) -> Text | None:
    """Return the text or the conversation of a row; None if it has neither."""
    if not isinstance(row, dict):
        return None
    if row.get("messages") is not None:
        return conversation(row["messages"])
    text = row.get("text")
    return text if isinstance(text, str) else None


def _hub(name: str) -> Iterable[Text]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(f"texts from the hub need datasets; {install_command('train')}") from error
    dataset, split, column = (*name.split(":"), "", "")[:3]
    try:
        for row in load_dataset(dataset, split=split or "train", streaming=True):
            found = row[column or "text"]
            text = found if isinstance(found, str) else conversation(found)
            if text is None:
                raise CheckpointError(
                    f"hub:{name} has a row without a usable {column or 'text'}; allowed: a text or {CONVERSATION}"
                )
            yield text
    except JustrightError:
        raise
    except Exception as error:  # datasets raises many types if the hub is unreachable
        raise SourceError(f"hub:{name} cannot be read ({error}): give a file or a folder") from error

"""Reading of text files and data files (JSON lines, JSON), the same for every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from justright.errors import CheckpointError, SourceError

SUFFIXES = (".jsonl", ".ndjson", ".json")
"""Endings of data files, in any case."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
CONVERSATION = f'[{{"role": ROLE, "content": "..."}}, ...] with the roles {", ".join(_ROLES)}'
"""The form that `conversation` expects, for messages."""


def is_data(file: Path) -> bool:
    """Whether the file's name ends like JSON lines or JSON."""
    return file.suffix.lower() in SUFFIXES


def read_text(file: Path) -> str:
    """Read UTF-8 text without its byte order mark, with line feeds only; single damaged characters are replaced.

    Raises:
        SourceError: the file cannot be read.
        CheckpointError: it is not text in UTF-8.
    """
    text = _bytes(file).decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text or text.count("\ufffd") > len(text) // 100:
        raise CheckpointError(f"{file} is not UTF-8 text; give text files in UTF-8")
    return text


def read_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Read the values of JSON lines, or of a JSON file (``.json``: the elements of an array, or one object).

    A line ends at a line feed only: U+2028, U+2029 and U+0085 may occur inside a JSON string. A byte order mark, blank
    lines and carriage returns before line feeds are ignored. A ``.json`` file that holds JSON lines is read as such.

    Yields:
        The place of the value (``line 3 of FILE``), for messages; and the value.

    Raises:
        SourceError: the file cannot be read.
        CheckpointError: it is not UTF-8, or a line is not JSON.
    """
    raw = _bytes(file)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CheckpointError(f"line {line} of {file} is not UTF-8; save the file as UTF-8") from error
    if file.suffix.lower() == ".json":
        try:
            whole = _value(str(file), text)
        except CheckpointError as error:
            if getattr(error.__cause__, "msg", "") != "Extra data":
                raise
        else:
            rows = whole if isinstance(whole, list) else [whole]
            yield from ((f"element {number} of {file}", row) for number, row in enumerate(rows, start=1))
            return
    for number, row_text in enumerate(text.split("\n"), start=1):
        if row_text.strip():
            where = f"line {number} of {file}"
            yield where, _value(where, row_text)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error


def _value(where: str, text: str) -> Any:
    try:
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{where} has half of a surrogate pair (\\ud800 to \\udfff)") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}") from error
    return found


def conversation(value: Any) -> list[dict[str, Any]] | None:
    """A conversation in OpenAI's form with every content as one text; None if it is no conversation.

    Content in parts (``[{"type": "text", "text": "..."}, ...]``) is joined, null content beside ``tool_calls`` becomes
    an empty text, JSON arguments of a call become an object, as chat templates expect, and null fields are removed.
    """
    if not isinstance(value, list) or not value:
        return None
    found = []
    for turn in value:
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            return None
        content = _content(turn.get("content"))
        calls = turn.get("tool_calls")
        if calls and turn.get("content") is None:
            content = ""
        if content is None:
            return None
        kept = {key: field for key, field in turn.items() if field is not None}
        kept["content"] = content
        if calls:
            kept["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else calls
        found.append(kept)
    return found


def _content(content: Any) -> str | None:
    if isinstance(content, list):
        parts = [
            part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
        ]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if content and len(texts) == len(content) else None
    return content if isinstance(content, str) else None


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        return call


def bare_text(turns: list[dict[str, Any]]) -> str:
    """A conversation as plain text, for models without a chat template: one line per content or tool call."""
    lines = []
    for turn in turns:
        calls = json.dumps(turn["tool_calls"], ensure_ascii=False) if turn.get("tool_calls") else ""
        lines += [text for text in (turn["content"], calls) if text] or [""]
    return "\n".join(lines)


def files_below(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """The files below a folder that end in one of ``suffixes`` (any case), and its other files that are not hidden."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    wanted = [file for file in files if file.suffix.lower() in suffixes]
    others = sorted(set(files).difference(wanted))
    return wanted, [f for f in others if not any(p.startswith(".") for p in f.relative_to(folder).parts)]


def skipped_note(folder: Path, skipped: list[Path], wanted: tuple[str, ...]) -> str:
    """A note on the files of a folder that are not read."""
    names = ", ".join(str(file.relative_to(folder)) for file in skipped[:3])
    more = ", ..." if len(skipped) > 3 else ""
    return f"{folder}: files not read: {len(skipped)} ({names}{more}); allowed endings: {', '.join(wanted)}"

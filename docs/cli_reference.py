"""An mkdocs hook that writes the page reference/cli.md from the program: every command, argument and option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from justright.cli.app import app

PAGE = "reference/cli.md"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated page to the site; mkdocs calls this."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page in Markdown."""
    program = get_command(app)
    parts = [
        "# Command line",
        "This page is generated from the program; `justright COMMAND --help` shows the same text.",
        _markdown(program.epilog),
        "Options of `justright` itself come before the command:",
        *_options(program, "justright"),
    ]
    for name, command in commands(program):
        parts += [f"## {name}", f"```text\n{_usage(name, command)}\n```", _markdown(command.help)]
        parts += _options(command, name)
    return "\n\n".join(part for part in parts if part) + "\n"


def commands(group: Any, path: str = "justright") -> Iterator[tuple[str, Any]]:
    """Yield the full name of every command below a group, and the command; groups that run come before their own."""
    for name, command in group.commands.items():
        full = f"{path} {name}"
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield full, command
        if hasattr(command, "commands"):
            yield from commands(command, full)


def _usage(name: str, command: Any) -> str:
    pieces = command.collect_usage_pieces(_context(command, name))
    return " ".join([name, *pieces]).replace("{", "").replace("}", "")


def _context(command: Any, name: str) -> Any:
    return command.context_class(command, info_name=name)


def _options(command: Any, name: str) -> list[str]:
    """Return a table of the arguments, and one of the options of each panel of the help text."""
    tables: dict[str, list[str]] = {}
    for parameter in command.get_params(_context(command, name)):
        record = parameter.get_help_record(_context(command, name))
        if record is None or parameter.name == "help":  # hidden, or known
            continue
        argument = parameter.param_type_name == "argument"
        title = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"
        shown = re.sub(r"list\[(\w+)\]", r"\1", record[0])
        text, default = _split_default(record[1])
        tables.setdefault(title, ["| name | meaning | default |", "|---|---|---|"]).append(
            f"| `{shown}` | {_markdown(text)} | {_markdown(default)} |"
        )
    return [part for title, rows in tables.items() for part in (f"**{title}**", "\n".join(rows))]


def _split_default(text: str) -> tuple[str, str]:
    """Split the default from a help text: Typer's notes in brackets at its end, or its own words in round brackets."""
    text, _, notes = text.partition("  [") if text.endswith("]") else (text, "", "")
    kept, default = [], ""
    for note in filter(None, notes.removesuffix("]").split("; ")):
        if note.startswith("default: "):
            value = note.removeprefix("default: ")
            default = value.strip("()") if value.startswith("(") else f"`{value}`"
        elif note == "required":
            default = note
        else:
            kept.append(note)
    if own := re.search(r"\s*\(default: (.*)\)\.?$", text):
        text, default = text[: own.start()], own[1]
    return text + (f" ({', '.join(kept)})" if kept else ""), default


def _markdown(text: str | None) -> str:
    """Return a help text as Markdown: a paragraph a line, special characters escaped outside of backticks."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    pieces = re.split(r"(`[^`]*`)", "\n\n".join(" ".join(part.split()) for part in paragraphs))
    return "".join(one if one.startswith("`") else re.sub(r"([*_|\[\]<>\\])", r"\\\1", one) for one in pieces)

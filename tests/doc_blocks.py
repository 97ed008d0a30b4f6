"""Blocks of code in README and docs/: Python to be run as a reader runs it, and the commands of console blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def module_from(page: str, heading: str, name: str) -> ModuleType:
    """Run the Python block under a page's heading as the module ``name``, and check that the section has six steps."""
    section = (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^(\d)\. ", section, re.M) == list("123456")
    [block] = re.findall(r"^ *```python\n(.*?)^ *```", section, re.M | re.S)
    module = ModuleType(name)
    exec(compile(re.sub(r"^   ", "", block, flags=re.M), page, "exec"), module.__dict__)
    return module


def pages() -> list[Path]:
    """The pages that users and contributors read; not the log, and not raw data."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    return [page for page in found if page.name != "log.md" and page.parent.name != "raw"]


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language in a page, without their indentation."""
    text = page.read_text(encoding="utf-8")
    return [dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.M | re.S)]


def commands(page: Path) -> list[list[str]]:
    """The words after ``justright`` of every command in the console blocks of a page."""
    found = []
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ ((?:.*\\\n)*.*)", block, re.M):
            if "justright" in line:
                found += _commands(line.replace("\\\n", " "))
    return found


def _commands(line: str) -> Iterator[list[str]]:
    """Split a shell line at pipes, lists and substitutions, and yield the words after ``justright``."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.wordchars += "@$:[]{},%+"
    command: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("();<>|&"):
            command.append(word)
            continue
        if command[:1] == ["justright"] or "-m justright" in " ".join(command):
            yield command[command.index("justright") + 1 :]
        command = []

"""The documentation names what there is: commands, options, Python names, recipes, metrics."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.main import get_command

from doc_blocks import DOCS, ROOT, blocks, commands, pages
from justright.bundle.recipe import Recipe
from justright.cli.app import app
from justright.cli.output import Terminal
from justright.serve.metrics import Metrics
from justright.serve.scheduler import Snapshot

PROGRAM: Any = get_command(app)


def parse(words: list[str]) -> None:
    """Parse a command line as the program does, without running it."""
    command, context = PROGRAM, None
    while True:
        context = command.make_context("justright", list(words), parent=context, obj=Terminal())
        words = [*context._protected_args, *context.args]
        if not words:
            return
        _, command, words = command.resolve_command(context, words)


def test_every_command_on_every_page_parses() -> None:
    found = [(page, words) for page in pages() for words in commands(page)]
    assert len({page for page, _ in found}) > 12, "most pages have commands"
    wrong = []
    for page, words in found:
        try:
            parse(words)
        except Exception as error:  # of Typer's vendored click
            wrong.append(f"{page.relative_to(ROOT)}: justright {' '.join(words)}: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    "words", ["generate zoo:moe --no-such-option", "train zoo:moe", "prune zoo:moe --seed x"]
)
def test_a_wrong_command_does_not_parse(words: str) -> None:
    with pytest.raises(Exception, match=r"No such|valid integer"):
        parse(words.split())


def test_every_import_of_justright_on_every_page_exists() -> None:
    names = set()
    for page in pages():
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("justright"):
                    names |= {(str(node.module), alias.name) for alias in node.names}
    assert ("justright", "LLM") in names
    assert [
        (module, name) for module, name in sorted(names) if not hasattr(importlib.import_module(module), name)
    ] == []


def test_the_recipes_are_recipes() -> None:
    recipes = [yaml.safe_load(block) for page in pages() for block in blocks(page, "yaml")]
    found = [Recipe.of(recipe) for recipe in recipes if "model" in recipe]
    assert found


def test_no_page_installs_a_package_that_is_not_published() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"pip install (--\S+ )*'?justright", text), page


def reference() -> ModuleType:
    """The hook that writes the command-line reference."""
    spec = importlib.util.spec_from_file_location("cli_reference", DOCS / "cli_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_option_and_default() -> None:
    page = reference().page()
    sections = dict(re.findall(r"^## (justright [\w ]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert {"justright generate", "justright bundle make", "justright zoo", "justright zoo build"} <= set(
        sections
    )
    assert "justright bundle" not in sections, "it does nothing by itself"
    for line in (
        "| `--sparsity <float>` | Fraction of the prunable parameters",
        "| `-o, --out <path>` |",
        "packaged:NAME or zoo:NAME. | required |",
    ):
        assert line in sections["justright prune"], line
    assert re.search(r"`--max-tokens N` \| .* \| `256` \|", sections["justright generate"])
    assert re.search(
        r"`--batch N` \| Prompts run at once\..* \| all, up to 4 \|", sections["justright generate"]
    )
    assert re.search(r"`--stream / --no-stream` \| .* \| `stream` \|", sections["justright generate"])


def test_the_table_of_metrics_is_complete() -> None:
    page = Metrics(lambda: Snapshot(0, 0, 1, 0, 0, None, 0, True, False)).render().decode()
    there = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    section = (DOCS / "reference/server.md").read_text(encoding="utf-8").split("\n## Metrics\n")[1]
    named = set(re.findall(r"`(justright_\w+)`", section))
    assert named == {name for name in there if not name.endswith("_created")}

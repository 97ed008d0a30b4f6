"""The package's fixed data: calibration and evaluation texts by domain, evaluation problems by level."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from justright_zoo.measure import evaluation_problems
from justright_zoo.recipes.data import prepare, read_blocks
from justright_zoo.recipes.problems import KINDS, LEVELS, draw, worked
from justright_zoo.recipes.texts import AUSTEN, DJANGO, DOMAINS, Domain, Split

PROBLEMS = 200
"""Number per kind and level."""
_CONVERSATIONS = 1000
_CHARACTERS: dict[Split, int] = {"calibration": 160_000, "evaluation": 100_000}


def export(work: Path, out: Path) -> None:
    """Write ``out/calibration``, ``out/evaluation``, ``out/problems`` and ``out/long``, always the same bytes.

    Texts are JSON lines ``{"text", "domain", "licence", "source"}``, problems
    ``{"question", "answer", "solution", "kind", "level"}``. Problems for calibration are conversations,
    ``{"messages"}``, and not held out.
    """
    prepare(work / "data")
    for split, most in _CHARACTERS.items():
        for domain in DOMAINS:
            licence = "; ".join(source.licence for source in domain.sources)
            what = "; ".join(source.what for source in domain.sources)
            lines = []
            for text in _spread(read_blocks(work / "data", domain.name, split), most):
                lines.append({"text": text, "domain": domain.name, "licence": licence, "source": what})
            _write(out / split / f"{domain.name}.jsonl", lines)
    _write(out / "calibration" / "problems.jsonl", _conversations())
    _write_long(work / "data" / "archives", out / "long")
    for kind in KINDS:
        for level in LEVELS:
            _write(
                out / "problems" / f"{kind}-{level}.jsonl",
                [
                    {
                        "question": p.question,
                        "answer": str(p.answer),
                        "solution": worked(p),
                        "kind": kind,
                        "level": level,
                    }
                    for p in evaluation_problems(kind, level, PROBLEMS)
                ],
            )


def _conversations() -> list[dict[str, object]]:
    """Word problems with solutions, from the training side of the split."""
    rng = random.Random(0)
    problems = [draw("story", 1 + i % 4, rng, held_out=False) for i in range(_CONVERSATIONS)]
    return [
        {"messages": [{"role": "user", "content": p.question}, {"role": "assistant", "content": worked(p)}]}
        for p in problems
    ]


_LONG = {
    "emma.txt": (AUSTEN, "", 0, False),
    "persuasion.txt": (AUSTEN, "", 3, False),
    "django-reference.txt": (DJANGO, r"[^/]+/docs/ref/.*\.txt", None, False),
    "django-database.py.txt": (DJANGO, r"[^/]+/django/db/.*\.py", None, True),
}
"""File -> archive, pattern of its files, index of the text (None: all joined), whether it is code."""
_LONG_CHARACTERS = 700_000


def _write_long(archives: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    index = {}
    for file, (source, pattern, number, code) in _LONG.items():
        texts = list(Domain("long", (source,), pattern).texts(archives))
        text = "\n\n".join(texts) if number is None else texts[number]
        (out / file).write_text(text[:_LONG_CHARACTERS], encoding="utf-8")
        index[file] = {"name": f"{source.what}: {file}", "licence": source.licence, "code": code}
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _spread(blocks: list[str], characters: int) -> list[str]:
    """Blocks at even distances in the list, about ``characters`` in total."""
    step = max(1.0, sum(map(len, blocks)) / characters)
    return [blocks[int(i * step)] for i in range(int(len(blocks) / step))]


def _write(file: Path, lines: Iterable[Mapping[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")

"""The package's long texts, for prompts of up to 64K tokens."""

from __future__ import annotations

import json
from typing import TypedDict

from justright_zoo import DATA

LONG = DATA / "long"


class LongText(TypedDict):
    """``name``, ``text``, ``licence``, and whether it is ``code``."""

    name: str
    text: str
    licence: str
    code: bool


def long_texts() -> list[LongText]:
    """All long texts, in a fixed order."""
    index = json.loads((LONG / "index.json").read_text(encoding="utf-8"))
    return [
        LongText(
            name=entry["name"],
            text=(LONG / file).read_text(encoding="utf-8"),
            licence=entry["licence"],
            code=entry["code"],
        )
        for file, entry in index.items()
    ]

"""Run the Python blocks of the pages in docs/, as a reader would."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent.parent / "docs"


def module_from(page: str, heading: str, name: str) -> ModuleType:
    """Run the Python block under a page's heading as the module ``name``, and check that the section has six steps."""
    section = (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^(\d)\. ", section, re.M) == list("123456")
    [block] = re.findall(r"^ *```python\n(.*?)^ *```", section, re.M | re.S)
    module = ModuleType(name)
    exec(compile(re.sub(r"^   ", "", block, flags=re.M), page, "exec"), module.__dict__)
    return module

"""Small real models that behave like large ones: ``zoo:moe``, ``zoo:fast``, ``zoo:slow``.

Importing this loads neither torch nor transformers. `justright_zoo.recipes` has the models' recipes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from justright.errors import CheckpointError, SourceError
from justright.provenance import file_sha256
from justright.records import read_rows

ROOT = Path(__file__).parent
MODELS = ROOT / "models"
DRAFTERS = ROOT / "drafters"
DATA = ROOT / "data"
TASKS = DATA / "lm_eval"
CALIBRATION = DATA / "calibration"
QUESTIONS = 60
MANIFEST = MODELS / "manifest.json"


@cache
def manifest() -> dict[str, dict[str, object]]:
    """The shipped models: name -> ``description``, ``origin`` and ``files`` (name -> SHA-256)."""
    if not MANIFEST.exists():
        return {}
    found: dict[str, dict[str, object]] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return found


def questions() -> dict[str, list[dict[str, str]]]:
    """Problems for calibration, by kind and level: the last 60 of each 200 held-out ones (measure on the others)."""
    return {
        file.stem: [row for _, row in read_rows(file)][-QUESTIONS:]
        for file in sorted((DATA / "problems").glob("*.jsonl"))
    }


@cache
def drafters() -> dict[str, dict[str, Path]]:
    """Trained drafters: identity of the verifier's weights -> kind -> folder."""
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(DRAFTERS.glob("*/config.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(about["verifier"], {})[about["kind"]] = file.parent
    return found


class ZooProvider:
    """Provides the shipped models; see `justright.checkpoint.sources.Provider`."""

    def names(self) -> Mapping[str, str]:
        """Name -> one line of description."""
        return {name: str(entry["description"]) for name, entry in manifest().items()}

    def path(self, name: str, *, progress: bool = True) -> Path:
        """The checkpoint directory of ``name``; compares every file with the manifest.

        Raises:
            SourceError: there is no such model.
            CheckpointError: a file is missing or has changed.
        """
        if name not in manifest():
            raise SourceError(
                f"no zoo model is called {name!r}; allowed: {', '.join(manifest()) or 'none'}. `justright zoo build "
                "NAME` trains others: give their folder as MODEL, or with `zoo measure NAME --model FOLDER`"
            )
        folder = MODELS / name
        files = manifest()[name]["files"]
        assert isinstance(files, dict)
        for file, expected in files.items():
            path = folder / file
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; install justright-zoo again")
            found = file_sha256(path)
            if found != expected:
                raise CheckpointError(
                    f"{path} is not the shipped file (SHA-256 {found[:12]}..., expected {str(expected)[:12]}...); "
                    "install justright-zoo again"
                )
        return folder


zoo = ZooProvider()

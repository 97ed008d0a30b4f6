"""Build a model of the zoo: ``python -m justright_zoo.recipes NAME``. NAME ``data`` writes the fixed data, and
``drafter:NAME`` trains a drafter.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from justright_zoo import ROOT
from justright_zoo.recipes.build import build, work_folder
from justright_zoo.recipes.catalogue import RECIPES
from justright_zoo.recipes.drafters import DRAFTER_RECIPES, build_drafter
from justright_zoo.recipes.export import export
from justright_zoo.recipes.release import release


def main() -> int:
    """Build what the command line names; reports progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*RECIPES, "data", *(f"drafter:{name}" for name in DRAFTER_RECIPES)])
    parser.add_argument(
        "--work", type=Path, default=work_folder(), help="folder of downloads and checkpoints"
    )
    parser.add_argument("--out", type=Path, help="output folder (default: in --work)")
    parser.add_argument("--release", action="store_true", help="measure the result and add it to the package")
    chosen = parser.parse_args()
    if chosen.name == "data":
        export(chosen.work, chosen.out or ROOT / "data")
        return 0
    if chosen.name.startswith("drafter:"):
        print(build_drafter(chosen.name.partition(":")[2], chosen.work, release=chosen.release))
        return 0
    begin = time.monotonic()

    def report(step: int, steps: int, loss: float, rate: float) -> None:
        if step % 10 == 0 or step == steps:
            minutes = (time.monotonic() - begin) / 60
            print(
                f"{step}/{steps} loss {loss:.3f} {rate:.0f} tokens/s {minutes:.1f} min",
                file=sys.stderr,
                flush=True,
            )

    built = build(chosen.name, chosen.work, chosen.out or chosen.work / "models" / chosen.name, report)
    print(release(chosen.name, built) if chosen.release else built)
    return 0


if __name__ == "__main__":
    sys.exit(main())

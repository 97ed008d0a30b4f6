"""A plot of a drafter's training."""

from __future__ import annotations

import json
from pathlib import Path

from justright.errors import CheckpointError


def draw_curve(folder: Path, file: Path) -> None:
    """Plot accuracy by draft step and expected acceptance length over the evaluations of a training.

    Raises:
        CheckpointError: the drafter has no curve.
    """
    curve_file = folder / "curve.json"
    if not curve_file.is_file():
        raise CheckpointError(f"{folder} has no curve.json; give a drafter that justright trained")
    curve = json.loads(curve_file.read_text(encoding="utf-8"))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    at: list[int] = []
    seen = 0
    for before, point in zip([None, *curve], curve, strict=False):
        if before is not None and before["phase"] != point["phase"]:
            seen = at[-1]
            for axes in (left, right):
                axes.axvline(seen, color="0.7", linestyle=":")
        at.append(seen + point["step"])
    for ahead in range(len(curve[0]["steps"])):
        left.plot(at, [point["steps"][ahead] for point in curve], label=f"{ahead + 1} ahead")
    left.set(title="most likely guess is right", xlabel="steps", ylim=(0, None))
    left.legend(fontsize="small")
    right.plot(at, [point["length"] for point in curve], label="plain state")
    spec = [(x, p["spec_length"]) for x, p in zip(at, curve, strict=True) if p["spec_length"] is not None]
    if spec:
        right.plot(*zip(*spec, strict=True), marker="o", label="[SPEC]")
    right.set(title="acceptance length of a chain, sampled text", xlabel="steps")
    right.legend(fontsize="small")
    figure.savefig(file, dpi=120)

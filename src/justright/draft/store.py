"""Where trained drafters are: in a directory, on the hub, or in a package that carries one for a model."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from justright.errors import SourceError
from justright.models.identity import weights_identity
from justright.models.sources import resolve_drafter

CARRIED = "justright.trained_drafters"
"""Entry-point group: a callable that returns ``{identity of a verifier's weights: {kind: folder}}``."""


def find_drafter(path: str | None, identity: str | None, kind: str = "lstm") -> Path:
    """The folder of a drafter.

    Args:
        path: a directory or a hub id; None: one that a package carries for the model with this identity.
        identity: of the verifier's weights.
        kind: of drafter.

    Raises:
        SourceError: there is none.
    """
    if path is not None:
        return resolve_drafter(path)
    for point in sorted(entry_points(group=CARRIED), key=lambda point: point.value):
        carried: dict[str, dict[str, Path]] = point.load()()
        if identity in carried and kind in carried[identity]:
            return carried[identity][kind]
    raise SourceError(
        "no installed package carries a trained drafter for this model: train one (justright draft train MODEL -o "
        "DRAFTER) and name it (--draft-option path=DRAFTER), or draft without training: --draft suffix"
    )


def drafter_at_hand(model: Path) -> bool:
    """Whether an installed package carries a trained drafter for the checkpoint ``model``."""
    try:
        find_drafter(None, weights_identity(model))
    except SourceError:
        return False
    return True

"""``justright unpack``: converts a sparse checkpoint to an ordinary one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from justright.cli.options import Json, Model
from justright.cli.output import output_of
from justright.cli.progress import kept_work, with_progress
from justright.files import check_new
from justright.readable import readable_bytes


def unpack(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to create.")],
    as_json: Json = False,
) -> None:
    """Convert a GGUF file, or the output of `justright prune --store sparse`, to an ordinary checkpoint, bit for bit.

    If interrupted, the same command continues.
    """
    from justright.checkpoint.reader import Checkpoint
    from justright.checkpoint.sources import resolve
    from justright.checkpoint.unpacking import unpack_checkpoint

    output = output_of(ctx)
    check_new(out)
    source = resolve(model, progress=not (output.quiet or output.json)).path
    with kept_work(output, out):
        path = with_progress(
            output, lambda tick: unpack_checkpoint(source, out, lambda n, of: tick("unpacking", n, of))
        )
    before, after = (Checkpoint.open(folder) for folder in (source, path))
    if output.json:
        output.object({"path": str(path), "bytes": after.nbytes, "packed_bytes": before.nbytes})
        return
    output.text(f"{path}: {readable_bytes(before.nbytes)} -> {readable_bytes(after.nbytes)}")
    if after.spec.is_uneven:
        output.note("note: its layers have different numbers of experts, so only justright loads it")

"""``justright path`` and ``justright inspect``: where a model is stored, and what it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from justright.cli.options import Json, Model
from justright.cli.output import output_of
from justright.readable import readable_bytes, readable_count

if TYPE_CHECKING:
    from rich.table import Table

    from justright.model.summary import Inspection


def path(ctx: typer.Context, model: Model, as_json: Json = False) -> None:
    """Print the local directory of a model, after fetching or converting it if needed."""
    from justright.checkpoint.sources import resolve

    output = output_of(ctx)
    source = resolve(model, progress=not output.json)
    if output.json:
        output.object(
            {
                "path": str(source.path),
                "name": source.name,
                "kind": source.kind,
                "revision": source.revision,
            }
        )
    else:
        output.text(str(source.path))


def inspect(ctx: typer.Context, model: Model, as_json: Json = False) -> None:
    """Show what a model is, what it needs and what can be done with it, without reading its weights."""
    from justright.architectures.spec import architecture_of
    from justright.checkpoint.reader import Checkpoint
    from justright.checkpoint.sources import resolve

    output = output_of(ctx)
    source = resolve(model, progress=not output.json)
    with Checkpoint.open(source.path) as checkpoint:
        architecture_of(checkpoint.config)  # an unsupported model fails here, before the slow imports
    with output.status("starting transformers"):
        from justright.model.summary import inspect as inspect_checkpoint

        found = inspect_checkpoint(source.path)
    if output.json:
        output.object({"model": model} | found.to_dict())
    else:
        output.table(_facts(model, found), _parameters(found), _memory(found), _capabilities(found))


def _facts(model: str, found: Inspection) -> Table:
    windows = ", ".join(f"{reach}: {count}" for reach, count in found.windows.items())
    disk = ", ".join(f"{dtype} {readable_bytes(size)}" for dtype, size in found.disk_dtypes.items())
    if found.store == "sparse":
        disk += ", a sparse container"
    if found.quantization:
        disk += f", quantised: {found.quantization}"
    context = f"{found.context:,} tokens"
    if found.usable_context < found.context:
        context += f"; {found.usable_context:,} usable, as longer ones change the rotary frequencies"
    rows = [
        ("family", found.family),
        ("parameters", f"{readable_count(found.total)}{_active(found)}"),
        ("layers", f"{found.layers}"),
        ("context", context),
        ("attention", f"{windows} layers"),
        ("vocabulary", f"{found.vocabulary:,} tokens"),
        ("on disk", disk),
        ("directory", str(found.path)),
    ]
    if found.experts:
        rows.insert(3, ("experts", _experts(found)))
    return _table(model, ("", ""), rows)


def _active(found: Inspection) -> str:
    return f", {readable_count(found.active)} active per token" if found.active != found.total else ""


def _experts(found: Inspection) -> str:
    experts = found.experts
    assert experts is not None
    least = "" if experts.least == experts.count else f"{experts.least} to "
    text = f"{least}{experts.count} in each of {experts.layers} layers, {experts.top_k} per token"
    if experts.groups != (1, 1):
        text += f", from {experts.groups[1]} of {experts.groups[0]} groups"
    return text + (", and shared experts" if experts.shared else "")


def _parameters(found: Inspection) -> Table:
    rows = []
    for part, count in found.parameters.items():
        if count:
            share = f"{100 * count / found.total:.1f}%" if part != "other" else "not counted"
            rows.append((part.replace("_", " "), f"{count:,}", share))
    if found.tied_embeddings:
        rows.append(("head", "tied", ""))
    rows.append(("total", f"{found.total:,}", "100%"))
    return _table("Parameters", ("part", "number", "share"), rows)


def _memory(found: Inspection) -> Table:
    rows = [
        (dtype, readable_bytes(found.weights_bytes[dtype]), readable_bytes(found.cache_bytes_per_1k[dtype]))
        for dtype in found.weights_bytes
    ]
    return _table("Memory", ("dtype", "weights", "cache per 1K tokens"), rows)


def _capabilities(found: Inspection) -> Table:
    rows = [(one.name, one.status, one.reason) for one in found.capabilities]
    return _table("Supported features", ("feature", "status", "reason"), rows)


def _table(title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title), title_justify="left", box=SIMPLE_HEAD, show_header=any(header), pad_edge=False
    )
    for name in header:
        numeric = name in ("number", "share", "weights", "cache per 1K tokens")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table

"""``justright bundle``: a model with its switch, drafter and defaults in one directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from justright.cli.options import DraftOption, Json, Model
from justright.cli.output import Terminal, output_of
from justright.cli.progress import kept_work, with_progress, with_words
from justright.errors import CheckpointError, UsageError
from justright.files import check_new
from justright.readable import key_values, readable_bytes, readable_seconds

if TYPE_CHECKING:
    from justright.bundle.build import StageEstimate
    from justright.checkpoint.bundle_manifest import Bundle, BundleCheck


class _MakeByDefault(TyperGroup):
    """Reads ``bundle MODEL ...`` as ``bundle make MODEL ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the command's name if it is missing."""
        known = {*self.commands, *ctx.help_option_names}
        if args and args[0] not in known:
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_MakeByDefault,
    no_args_is_help=True,
    help="A model with its switch, its drafter and its defaults in one directory, which every command takes as a "
    "MODEL. justright bundle MODEL ... is short for justright bundle make MODEL ...",
)


@app.command("make")
def make(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory to create.")] = None,
    switch: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER",
            help="Switch, from `justright switch extract`: a directory or a hub id.  (default: none)",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFTER",
            help="Drafter, from `justright draft train`: a directory or a hub id; or a name: lstm, hybrid (with the "
            "drafter of an installed package), suffix, recycling, none.",
        ),
    ] = None,
    draft_option: DraftOption = None,
    default: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A default of the bundle: draft, effort, max_context, temperature, top_k, top_p, min_p or "
            "repetition_penalty; repeatable.",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copies of the weights, even where hard links are possible.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only checks, and a list of the contents; writes nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Combine a model and its parts; a part that was made for another model is an error.

    If interrupted, the same command continues after the last copied file.
    """
    output = output_of(ctx)
    if out is None and not dry_run:
        raise UsageError("there is no output directory: give -o DIR, or --dry-run")
    options = key_values(draft_option or [], "--draft-option")
    values = key_values(default or [], "--default")
    with output.status("checking the parts"):
        from justright.bundle.contents import check_contents

        if out is not None:
            check_new(out)
        contents = check_contents(model, switch=switch, draft=draft, draft_options=options, defaults=values)
    for note in contents.notes:
        output.note(f"note: {note}")
    if dry_run:
        defaults = contents.defaults.to_dict()
        if output.json:
            output.object(
                {"size_bytes": contents.size_bytes, "parts": dict(contents.about), "defaults": defaults}
            )
        else:
            parts = ", ".join(contents.parts) or "no parts"
            output.text(f"{model} with {parts}: {readable_bytes(contents.size_bytes)}; {_words(defaults)}")
        return
    assert out is not None
    with kept_work(output, out):
        bundle = with_progress(
            output,
            lambda tick: contents.write(
                out, copy=copy, tick=lambda stage, done, total: tick(stage, done >> 20, max(total >> 20, 1))
            ),
        )
    show(output, bundle)


@app.command("inspect")
def inspect(
    ctx: typer.Context,
    bundle: Annotated[str, typer.Argument(help="A bundle's directory or hub id.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check of every file's hash.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle contains, for which model, and how it runs by default.

    The exit code is 3 if a file is missing or has another length; with --verify, also if any byte differs.
    """
    from justright.checkpoint.bundle_manifest import Bundle
    from justright.checkpoint.sources import resolve

    output = output_of(ctx)
    found = Bundle.open(resolve(bundle, progress=not (output.quiet or output.json)).path)
    verified = with_progress(output, found.verify) if verify else found.verify(hashes=False)
    show(output, found, verified if verify else None)
    if not verified.whole:
        listed = [f"{name} is missing" for name in verified.missing]
        listed += [f"{name} is changed" for name in verified.changed]
        raise CheckpointError(
            f"{found.path} differs from its manifest: {', '.join(listed)}. Download or copy these files again, or make "
            "the bundle again"
        )


@app.command("build")
def build(
    ctx: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML file).", metavar="RECIPE")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The directory to create.  (default: the recipe's out)")
    ] = None,
    redo: Annotated[
        bool,
        typer.Option("--redo", help="Rerun of stages whose settings changed, and of the stages after them."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only checks, and estimates of stages, sizes and time; writes nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a bundle from a pair of models: prune both alike, extract the switch, train the drafter for both modes.

    If killed at any time, the same command continues. Stages made with other settings are an error without --redo.
    """
    output = output_of(ctx)
    with output.status("checking the recipe"):
        from justright.bundle.build import BundleBuild
        from justright.bundle.recipe import Recipe

        wanted = Recipe.read(recipe)
        target = out or wanted.out
        if target is None:
            raise UsageError("there is no output directory: give -o DIR, or out in the recipe")
        work = BundleBuild(wanted, target)
    for note in (known := list(work.notes)):
        output.note(f"note: {note}")
    if dry_run:
        with output.status("measuring"):
            steps = work.estimate()
        _show_steps(output, steps, redo=redo)
        return
    with kept_work(output, target):
        bundle = with_words(output, lambda report: work.run(report, redo=redo))
    for note in work.notes[len(known) :]:
        output.note(f"note: {note}")
    show(output, bundle)


def _show_steps(output: Terminal, steps: list[StageEstimate], *, redo: bool) -> None:
    if output.json:
        from dataclasses import asdict

        output.object({"stages": [asdict(step) for step in steps]})
        return
    for step in steps:
        took = "" if step.seconds is None else f"about {readable_seconds(step.seconds)}, "
        how = "done, " if step.done else took
        output.text(f"{step.stage:7} {how}{readable_bytes(step.size_bytes)} ({step.held})")
        if step.changed and not redo:
            output.note(
                f"note: {step.stage} was made with other settings ({', '.join(step.changed)}): give --redo to rerun it"
            )
    known = sum(step.seconds or 0.0 for step in steps)
    output.text(f"total   about {readable_seconds(known)}, measured on the unpruned models")


def show(output: Terminal, bundle: Bundle, verified: BundleCheck | None = None) -> None:
    """Print what a bundle contains."""
    if output.json:
        from dataclasses import asdict

        checked = {} if verified is None else {"verified": asdict(verified) | {"whole": verified.whole}}
        output.object(
            {"path": str(bundle.path), "size_bytes": bundle.size_bytes(), **bundle.to_dict()} | checked
        )
        return
    output.text(f"{bundle.path}: {readable_bytes(bundle.size_bytes())}")
    output.text(f"  model   {_files(bundle, 'model')}; weights {bundle.verifier}")
    for name, about in bundle.parts.items():
        output.text(f"  {name:7} {_files(bundle, name)}; {_about(about)}")
    for mode, file in bundle.templates.items():
        output.text(f"  chat template{' of the fast mode' * (mode == 'fast')}: {file}")
    output.text(f"  defaults: {_words(bundle.defaults)}")
    if verified is not None:
        output.text(
            "All files match the manifest." if verified.whole else "Some files differ from the manifest."
        )
        if verified.added:
            output.note(f"note: files that are not part of the bundle: {', '.join(verified.added)}")


def _files(bundle: Bundle, part: str) -> str:
    from justright.checkpoint.bundle_manifest import part_of_file

    count = sum(part_of_file(name) == part for name in bundle.files)
    return f"{count} files, {readable_bytes(bundle.size_bytes(part))}"


def _about(about: Any) -> str:
    """Describe a part in a few words."""
    shown = {name: about[name] for name in ("kind", "form", "parameters", "width") if about.get(name)}
    words = [
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in shown.items()
    ]
    for name, digits in (("energy", ".1%"), ("acceptance_length", ".2f")):
        if about.get(name) is not None:
            words.append(f"{name.replace('_', ' ')} {about[name]:{digits}}")
    words += ["with [SPEC]"] if about.get("spec") else []
    if "factors" in about:
        words.append("for both modes" if 1.0 in about["factors"] else "for one mode")
    return ", ".join(words)


def _words(defaults: Any) -> str:
    """Describe the defaults in one line."""
    flat = {name: value for name, value in defaults.items() if name not in ("draft_options", "sampling")}
    flat |= {f"draft option {name}": value for name, value in defaults.get("draft_options", {}).items()}
    flat |= defaults.get("sampling", {})
    return ", ".join(f"{name} {value}" for name, value in flat.items()) or "none"

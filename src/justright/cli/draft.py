"""``justright draft``: trains a drafter for a model, and inspects one."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from justright.cli.options import Json, Model, is_given, named
from justright.cli.output import Terminal, output_of
from justright.cli.progress import kept_work, with_words
from justright.errors import UsageError
from justright.readable import readable_bytes, readable_seconds

if TYPE_CHECKING:
    from justright.training.pipeline import Trained

app = typer.Typer(
    no_args_is_help=True,
    help="Drafters for speculative decoding at any length of context: an LSTM fed by the model's last state, and a "
    "[SPEC] token (OWL, arXiv:2510.07535).",
)

_data = partial(typer.Option, rich_help_panel="Data")
_shape = partial(typer.Option, rich_help_panel="Drafter")
_work = partial(typer.Option, rich_help_panel="Training")


@app.command("train")
def train(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory to create.")] = None,
    texts: Annotated[
        list[str] | None,
        _data(
            metavar="NAME[=SHARE]",
            help="Where prompts are from: a file, a folder, zoo, zoo:DOMAIN or hub:OWNER/NAME; repeatable.  (default: "
            "zoo)",
        ),
    ] = None,
    sequences: Annotated[int, _data(help="Texts the model writes.")] = 4096,
    held_out: Annotated[int, _data(help="Further ones, to evaluate on.")] = 128,
    prompt_tokens: Annotated[int, _data(help="Most tokens of a prompt.")] = 64,
    output_tokens: Annotated[int, _data(help="Sampled behind each.")] = 256,
    batch: Annotated[int, _data(help="Texts written side by side.")] = 128,
    temperature: Annotated[float, _data(help="Of sampling.")] = 0.7,
    chat: Annotated[float, _data(help="Share of the prompts in the chat template.")] = 0.5,
    switch: Annotated[
        str | None,
        _data(
            metavar="ADAPTER",
            help="Half of the texts in the fast mode of this adapter: one drafter for both modes.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        _data(
            metavar="DIR",
            help="Keep the texts and states here, for other drafters of this model.  (default: deleted at the end)",
        ),
    ] = None,
    width: Annotated[int | None, _shape(help="Of its state.  (default: the model's, at most 2048)")] = None,
    steps: Annotated[int, _shape(help="Tokens ahead it learns.")] = 5,
    cell: Annotated[str, _shape(help="lstm; rnn and attention: baselines.")] = "lstm",
    embedding: Annotated[str, _shape(help="shared (the model's) or own.")] = "shared",
    head: Annotated[str, _shape(help="shared (the model's) or own.")] = "shared",
    draft_vocab: Annotated[
        int | None,
        _shape(
            help="Most frequent tokens that its head knows; 0: all.  (default: 8192 of a vocabulary above 16384, else "
            "all)"
        ),
    ] = None,
    spec: Annotated[bool, _shape("--spec/--no-spec", help="Train a [SPEC] token with it.")] = True,
    epochs: Annotated[float, _work(help="Passes over the texts.")] = 2.5,
    rows: Annotated[int, _work(help="Texts a step.")] = 8,
    rate: Annotated[float, _work(help="Learning rate.")] = 0.012,
    spec_steps: Annotated[int, _work(help="Steps with [SPEC].")] = 700,
    spec_rows: Annotated[int, _work(help="Texts a step of these.")] = 4,
    spec_rate: Annotated[float, _work(help="Learning rate of these.")] = 0.004,
    vector_rate: Annotated[float, _work(help="Of [SPEC]'s embedding, in sizes of a token's.")] = 0.2,
    evaluate_every: Annotated[int, _work(help="Steps between evaluations.")] = 100,
    patience: Annotated[int, _work(help="Evaluations without a better one that end it; 0: never.")] = 5,
    seed: Annotated[int, _work(help="Of prompts, sampling and weights.")] = 0,
    device: Annotated[str, _work(help="auto, or cpu: even where there is a GPU.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what it would take; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a drafter for MODEL on texts that MODEL itself generates.

    If killed at any time, the same command continues where it stopped. On several GPUs: accelerate launch -m justright
    draft train ...
    """
    output = output_of(ctx)
    if out is None and not dry_run:
        raise UsageError("give the directory to create (-o DIR), or --dry-run")
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device}: allowed are auto and cpu; choose a GPU by CUDA_VISIBLE_DEVICES")
    if not spec or cell == "attention":
        for name in ("spec_steps", "spec_rows", "spec_rate", "vector_rate"):
            if is_given(ctx, name):
                raise UsageError(f"--{name.replace('_', '-')} has no meaning without [SPEC]: leave it out")
    if cell == "attention" and is_given(ctx, "spec") and spec:
        raise UsageError("an attention drafter has no [SPEC]: leave --spec out")
    with output.status("reading the model"):
        from justright.calibration.texts import notes
        from justright.checkpoint.sources import resolve
        from justright.training.pipeline import DrafterShape, Job, TrainingJob
        from justright.training.self_generated import DataSetting
        from justright.training.trainer import TrainSetting

        kinds = (DrafterShape, DataSetting, TrainSetting)
        given = {kind: named(ctx, (field.name for field in fields(kind))) for kind in kinds}
        job = Job(
            resolve(model).path,
            out or Path("drafter.dry-run"),
            tuple(texts or ["zoo"]),
            DrafterShape(**given[DrafterShape]),
            DataSetting(**given[DataSetting]),
            TrainSetting(**given[TrainSetting] | {"spec_steps": spec_steps if spec else 0}),
            switch,
            data,
            None if device == "auto" else device,
        )
        work = TrainingJob(job)
    for note in notes(job.texts) if work.accelerator.is_main_process else ():
        output.note(f"note: {note}")
    if dry_run:
        with output.status("measuring"):
            found = work.estimate()
        _show_estimate(output, found)
        return
    with kept_work(output, job.out):
        trained = with_words(output, work.run)
    if not work.accelerator.is_main_process:
        return
    if output.json:
        output.object(trained.to_dict())
    else:
        _show_trained(output, trained)


@app.command("inspect")
def inspect(
    ctx: typer.Context,
    drafter: Annotated[
        str,
        typer.Argument(
            help="A drafter's directory or hub id; or a model that has one: a bundle, packaged:NAME, zoo:NAME."
        ),
    ],
    picture: Annotated[
        Path | None, typer.Option(help="Draw its training curve into this file (needs matplotlib).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a drafter is, for which model, and its accuracy on held-out prompts."""
    output = output_of(ctx)
    from justright.speculative.lstm_network import LstmConfig
    from justright.speculative.store import WEIGHTS, named_drafter, read_about, read_config

    folder = named_drafter(drafter)
    about = read_about(folder)
    if picture is not None:
        from justright.bench.demo_picture import check_picture
        from justright.training.curve import draw_curve

        check_picture(picture)
        draw_curve(folder, picture)
    size = (folder / WEIGHTS).stat().st_size
    if output.json:
        output.object(about | {"size_bytes": size})
        return
    known = about.get("draft_vocab") or about.get("vocab_size")
    what = f"Attention drafter of one layer (a baseline); {known:,} tokens in its head"
    if about["kind"] == "lstm":
        config = read_config(folder, "lstm", LstmConfig)
        what = (
            f"{config.cell.upper()} drafter, width {config.width}, {config.steps} steps; {config.head_size:,} of "
            f"{config.vocab_size:,} tokens in its head; embedding {config.embedding}, head {config.head}; "
            f"{'with' if config.spec else 'without'} [SPEC]"
        )
    output.text(f"{what}; {readable_bytes(size)}")
    output.text(f"For the model with the identity {about['verifier']}, states of {about['hidden_size']}.")
    if "accuracy" in about:
        _show_accuracy(output, about["accuracy"], about.get("coverage", 0.0))


def _show_estimate(output: Terminal, found: dict[str, Any]) -> None:
    if output.json:
        output.object(found)
        return
    data = found["data"]
    text = (
        f"Data: {data['tokens']:,} tokens, about {readable_seconds(data['seconds'])} and "
        f"{readable_bytes(data['bytes'])}. Training: {found['steps']:,} steps, about "
        f"{readable_seconds(found['train_seconds'])}"
    )
    if found["spec_steps"]:
        text += (
            f"; with [SPEC]: {found['spec_steps']:,} steps, about {readable_seconds(found['spec_seconds'])}"
        )
    output.text(
        f"{text}. By the size of the products: evaluation comes on top, and small models take longer."
    )


def _show_trained(output: Terminal, trained: Trained) -> None:
    from dataclasses import asdict

    from justright.speculative.lstm_network import LstmConfig

    output.text(f"{trained.out}: {readable_bytes(trained.size_bytes)}")
    _show_accuracy(output, asdict(trained.accuracy), trained.coverage)
    name = "lstm" if isinstance(trained.config, LstmConfig) else "attention"
    if trained.left is not None:
        output.note(
            f"note: {trained.left} holds more texts than were asked for, from a larger run: another training may take "
            f"them (--data {trained.left}); else delete it"
        )
    output.text(f"Use it: justright generate MODEL --draft {name} --draft-option path={trained.out}")


def _show_accuracy(output: Terminal, accuracy: dict[str, Any], coverage: float) -> None:
    from rich.table import Table

    table = Table(title="On held-out prompts")
    table.add_column("tokens ahead")
    names = {"steps": "most likely guess", "top": "among four", "spec_steps": "from [SPEC]"}
    shown = [name for name in names if accuracy.get(name)]
    for name in shown:
        table.add_column(names[name], justify="right")
    for step in range(len(accuracy["steps"])):
        table.add_row(str(step + 1), *(f"{accuracy[name][step]:.1%}" for name in shown))
    output.table(table)
    spec = accuracy.get("spec_length")
    more = "" if spec is None else f"; from [SPEC]'s {spec:.2f}"
    output.text(
        f"A chain of its likeliest guesses against sampled text emits {accuracy['length']:.2f} tokens a verification "
        f"from plain states{more}. Its head knows {coverage:.1%} of the tokens."
    )

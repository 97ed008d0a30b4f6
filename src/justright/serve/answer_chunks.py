"""Turns output chunks into what clients get: reasoning and answer apart, stream chunks, whole answers, usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from justright.engine.detokenizer import TextStream
from justright.engine.request import Emission, Request
from justright.engine.sampler import TokenLogprob
from justright.readable import json_line
from justright.reasoning.budget import FAST
from justright.reasoning.parser import ThoughtText
from justright.serve.token_text import TokenTexts

_LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of probability zero, which JSON cannot express (OpenAI uses the same value)."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one or several output chunks add to an answer.

    Attributes:
        reasoning: new text of the reasoning.
        content: new text of the answer.
        token_ids: all new tokens.
        drafted: how many of them, counted from the first, were drafted.
        logprobs: log-probabilities of the answer's new tokens.
        offset: characters of the tokens before these.
    """

    reasoning: str
    content: str
    token_ids: Sequence[int]
    drafted: int
    logprobs: Sequence[TokenLogprob]
    offset: int = 0


@dataclass(slots=True)
class Answer:
    """One answer in progress; call `take` with every output chunk of its request, in order.

    Attributes:
        request: the request being answered.
        texts: token texts.
        apart: whether reasoning is separated from the answer (chats) or text stays as it is (completions).
        reasoning: the reasoning so far.
        content: the answer so far.
        logprobs: log-probabilities of the answer's tokens so far.
        done: whether the last output chunk was taken.
    """

    request: Request
    texts: TokenTexts
    apart: bool
    reasoning: str = ""
    content: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    done: bool = False
    _offset: int = 0
    _split: ThoughtText | None = None
    _after_reasoning: bool = False
    _decoder: TextStream | None = None
    _pending: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    """Tokens whose text has not been output yet, each with the number of characters before it."""
    _length: int = 0

    def take(self, emission: Emission) -> Delta:
        """Add an output chunk, and return the difference."""
        if self._split is None:
            self._set_up()
        assert self._split is not None
        parts = self._split.push(emission.text)
        if emission.finish_reason is not None:
            parts += self._split.finish()
            self.done = True
        reasoning = "".join(part.text for part in parts if part.thought)
        content = "".join(part.text for part in parts if not part.thought)
        logprobs = [one for one in self._released(emission) if self._is_reported(one)]
        self.reasoning += reasoning
        self.content += content
        self.logprobs += logprobs
        offset = self._offset
        self._offset += sum(len(self.texts.text(one.token_id)) for one in logprobs)
        return Delta(reasoning, content, emission.token_ids, emission.drafted, logprobs, offset)

    def _set_up(self) -> None:
        """Set up the splitter with the first chunk: choosing the mode may change the prompt until then."""
        request = self.request
        tags = request.tags if self.apart else None
        may_open = request.constraint is None
        self._split = ThoughtText(tags, thinking=request.opened, may_open=may_open)

    def _released(self, emission: Emission) -> list[TokenLogprob]:
        """Return the log-probabilities of tokens whose text has started to appear, never those of a stop string."""
        tokenizer = self.texts.tokenizer
        for one in emission.logprobs:
            if self._decoder is None:
                self._decoder = TextStream(tokenizer)
            begin, own = len(self._decoder.text), self.texts.text(one.token_id)
            if self._decoder.push(one.token_id).endswith(own):  # any text before it belongs to earlier tokens
                begin = len(self._decoder.text) - len(own)
            self._pending.append((begin, one))
        self._length += len(emission.text)
        ended = emission.finish_reason is not None and emission.request.stopped_by is None
        count = sum(ended or begin < self._length for begin, _ in self._pending)
        released, self._pending = self._pending[:count], self._pending[count:]
        return [one for _, one in released]

    def _is_reported(self, one: TokenLogprob) -> bool:
        """Whether to report a token's log-probability: not in reasoning, white space after it, or end tokens."""
        if self.apart:
            outside = one.thought or (self._after_reasoning and not self.texts.text(one.token_id).strip())
            self._after_reasoning = outside
            if outside:
                return False
        return one.token_id not in self.request.stop_token_ids

    @property
    def finish_reason(self) -> str:
        """OpenAI's finish reason; an answer cut off by a deadline has ``length``."""
        return "stop" if self.request.finish_reason == "stop" else "length"

    @property
    def ended_by(self) -> str:
        """``end``, ``stop``, ``length`` or ``deadline``; also ``cancelled``, which no client sees."""
        request = self.request
        if request.timed_out:
            return "deadline"
        if request.finish_reason == "cancelled":
            return "cancelled"
        if request.stopped_by is not None:
            return "stop"
        return "end" if request.finish_reason == "stop" else "length"

    def details(self) -> dict[str, Any]:
        """Return how the answer came about, as in `responses.ResponseDetails`."""
        request, stats = self.request, self.request.stats
        decision = stats.decision
        mode = "fast" if request.plan.factor >= FAST else "slow"
        return {
            "mode": mode if decision is None else decision.mode,
            "decision": None if decision is None else decision.to_dict(),
            "acceptance_length": round(stats.acceptance_length, 4),
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "fast_tokens": stats.fast_tokens,
            "discarded_tokens": stats.discarded_tokens,
            "tokens_saved": stats.tokens_saved,
            "near_ties": stats.near_ties,
            "prefill_s": round(stats.prefill_s, 6),
            "decode_s": round(stats.decode_s, 6),
            "ended_by": self.ended_by,
            "stop": request.stopped_by,
        }


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the objects of one HTTP answer to a chat; `CompletionWriter` does so for a completion.

    Attributes:
        id: the answer's id.
        created: Unix time in seconds.
        model: model name as the client gave it.
        texts: token texts.
        choices: number of answers to each prompt.
        usage: whether a stream ends with its usage.
        trace: whether chunks report drafted tokens.
    """

    id: str
    created: int
    model: str
    texts: TokenTexts
    choices: int = 1
    usage: bool = False
    trace: bool = False

    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def answer(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [
            {
                "index": index,
                **self._content_fields(one),
                "finish_reason": one.finish_reason,
                "logprobs": None if one.request.top_logprobs is None else self._logprobs(one.logprobs),
                "justright": one.details(),
            }
            for index, one in enumerate(answers)
        ]
        return self._head(self.whole) | {"choices": choices, "usage": usage_of(answers, self.choices)}

    def first(self, index: int) -> list[dict[str, Any]]:
        """Return the chunks that precede the text of choice ``index``."""
        return [self._chunk(index, {"delta": {"role": "assistant", "content": ""}})]

    def chunks(self, index: int, answer: Answer, delta: Delta) -> list[dict[str, Any]]:
        """Return the chunks for ``delta``: reasoning, answer, and the end if the answer is done."""
        bodies = self._bodies(answer, delta)
        trace = {"justright": self._trace(delta)} if self.trace and delta.token_ids else {}
        if trace and not bodies:
            bodies = [self._empty()]
        if bodies:
            bodies[0] |= trace
        found = [self._chunk(index, body) for body in bodies]
        if answer.done:
            end = {"finish_reason": answer.finish_reason, "justright": answer.details()}
            found.append(self._chunk(index, self._empty() | end))
        return found

    def last(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Return the chunks after the end of all choices."""
        if not self.usage:
            return []
        return [self._head(self.piece) | {"choices": [], "usage": usage_of(answers, self.choices)}]

    def _content_fields(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        return {"message": message}

    def _bodies(self, answer: Answer, delta: Delta) -> list[dict[str, Any]]:
        bodies: list[dict[str, Any]] = []
        if delta.reasoning:
            bodies.append({"delta": {"reasoning_content": delta.reasoning}})
        if delta.content or delta.logprobs:
            bodies.append({"delta": {"content": delta.content}})
            if answer.request.top_logprobs is not None:
                bodies[-1]["logprobs"] = self._logprobs(delta.logprobs)
        return bodies

    def _empty(self) -> dict[str, Any]:
        return {"delta": {}}

    def _logprobs(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
        def one(token_id: int, logprob: float) -> dict[str, Any]:
            data = self.texts.data(token_id)
            return {"token": self.texts.text(token_id), "logprob": _finite(logprob), "bytes": list(data)}

        content = [
            one(item.token_id, item.logprob) | {"top_logprobs": [one(*top) for top in item.top]}
            for item in logprobs
        ]
        return {"content": content, "refusal": None}

    def _trace(self, delta: Delta) -> dict[str, Any]:
        texts = [self.texts.text(token) for token in delta.token_ids]
        return {"tokens": len(delta.token_ids), "drafted": delta.drafted, "texts": texts}

    def _chunk(self, index: int, body: dict[str, Any]) -> dict[str, Any]:
        chunk = self._head(self.piece) | {"choices": [{"index": index, "finish_reason": None} | body]}
        return chunk | {"usage": None} if self.usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True, slots=True)
class CompletionWriter(Writer):
    """Writes plain completions."""

    whole = "text_completion"
    piece = "text_completion"

    def first(self, index: int) -> list[dict[str, Any]]:
        """Return no chunks."""
        return []

    def _content_fields(self, answer: Answer) -> dict[str, Any]:
        return {"text": answer.content}

    def _bodies(self, answer: Answer, delta: Delta) -> list[dict[str, Any]]:
        if not (delta.content or delta.logprobs):
            return []
        body: dict[str, Any] = {"text": delta.content}
        if answer.request.top_logprobs is not None:
            body["logprobs"] = self._logprobs(delta.logprobs, delta.offset)
        return [body]

    def _empty(self) -> dict[str, Any]:
        return {"text": ""}

    def _logprobs(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
        tokens = [self.texts.text(one.token_id) for one in logprobs]
        return {
            "tokens": [self.texts.label(one.token_id) for one in logprobs],
            "token_logprobs": [_finite(one.logprob) for one in logprobs],
            "top_logprobs": [{self.texts.label(t): _finite(p) for t, p in one.top} for one in logprobs],
            "text_offset": list(accumulate(map(len, tokens[:-1]), initial=offset)) if tokens else [],
        }


def usage_of(answers: Sequence[Answer], choices: int) -> dict[str, Any]:
    """Count input and output tokens.

    Args:
        answers: all answers, with the choices of each prompt adjacent.
        choices: number of choices for each prompt.
    """
    prompts = answers[::choices]
    prompt_tokens = sum(len(one.request.prompt_ids) for one in prompts)
    output = sum(one.request.stats.output_tokens for one in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output,
        "total_tokens": prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": sum(one.request.stats.reused_tokens for one in prompts)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(one.request.stats.reasoning_tokens for one in answers)
        },
    }


def event(body: dict[str, Any]) -> bytes:
    """Encode one server-sent event."""
    return b"data: " + json_line(body).encode() + b"\n\n"


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)

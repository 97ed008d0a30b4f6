"""Sampling and verification: accepts drafted tokens and chooses the token after them.

Greedy: a draft token is accepted if it is the model's own argmax. Sampling: speculative sampling, which preserves
the model's distribution exactly (arXiv:2302.01318, arXiv:2211.17192; trees: arXiv:2305.09781). transformers' own
processors process the logits of each visited node and no others, so every option means the same as in plain
decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from justright.errors import ResourceError, UsageError
from justright.speculative.base import Draft

# A top-1 to top-2 gap below this share of the top logit is within the rounding error of another summation order:
# some 40 units in the last place of float32 after a few dozen layers (measured: tests/engine/test_packaged.py).
_TIE_RELATIVE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}

_LEAST_TEMPERATURE = 1e-30  # logits up to 1e8, divided by it, stay finite in float32

Until = Callable[[int], bool]


TOKEN_CHOICE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
"""The fields of `SamplingParams` that say how tokens are chosen."""
MAX_LOGPROBS = 20


class _OpenFloat(float):
    """A default: the user leaves the field open."""


class _OpenInt(int):
    """A default: the user leaves the field open."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when the output ends; the defaults are greedy.

    Attributes:
        temperature: 0 = greedy; otherwise divides the logits.
        top_k: keep the k most likely tokens; 0 = all.
        top_p: keep the smallest set with at least this probability, in (0, 1].
        min_p: keep tokens at least this share as likely as the most likely, in [0, 1].
        repetition_penalty: > 1 makes tokens seen in prompt or output less likely (arXiv:1909.05858).
        seed: of this request's own generator; None takes one from the system.
        max_tokens: the most tokens to generate, reasoning included; None: as many as the context holds.
        stop: strings that end the output and are not part of its text; a single string is one of them.
        logprobs: how many of the most likely tokens to report with the log-probability of each generated token, 0 to
            20 (0: the generated tokens' alone); None: report none.

    Raises:
        UsageError: a value that is not allowed.
    """

    temperature: float = _OpenFloat(0)
    top_k: int = _OpenInt(0)
    top_p: float = _OpenFloat(1)
    min_p: float = _OpenFloat(0)
    repetition_penalty: float = _OpenFloat(1)
    seed: int | None = None
    max_tokens: int | None = _OpenInt(256)
    stop: Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        checks = {
            "temperature": (
                self.temperature == 0 or _LEAST_TEMPERATURE <= self.temperature < float("inf"),
                f"0 (greedy), or {_LEAST_TEMPERATURE:g} or more",
            ),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0 (1 is off)"),
            "seed": (self.seed is None or -(2**63) <= self.seed < 2**64, "a 64-bit integer"),
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 1, "1 or more, or None"),
            "stop": (all(isinstance(one, str) and one for one in stop), "strings that are not empty"),
            "logprobs": (
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                f"0 to {MAX_LOGPROBS}, or None",
            ),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                message = f"{name} is {getattr(self, name)!r}; allowed: {allowed}"
                raise UsageError(message, about=name)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that the user set, by name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if not isinstance(value, _OpenFloat | _OpenInt)}

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature == 0

    def processors(self) -> LogitsProcessorList:
        """The logits processors, in the order in which transformers' ``generate`` applies them."""
        chain = LogitsProcessorList()
        if self.repetition_penalty != 1:
            chain.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if not self.greedy:
            if self.temperature != 1:
                chain.append(TemperatureLogitsWarper(self.temperature))
            if self.top_k:
                chain.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                chain.append(TopPLogitsWarper(self.top_p))
            if self.min_p:
                chain.append(MinPLogitsWarper(self.min_p))
        return chain


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    Attributes:
        path: indices of the accepted nodes in the step, from the root (0) on; the cache keeps these.
        token_ids: the accepted draft tokens and one token of the model (none after a draft token that ended
            the walk).
        near_ties: how many of ``token_ids`` won by a margin within floating-point noise.
        guessed: how many of ``token_ids``, from the first, are draft tokens; all of them if a draft token ended the
            walk.
    """

    path: list[int]
    token_ids: list[int]
    near_ties: int
    guessed: int = 0


class Constraint(Protocol):
    """A constraint on an output, token by token (a grammar, a JSON schema)."""

    @property
    def failure(self) -> str | None:
        """Why the output can no longer satisfy the constraint; None while it can."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the output satisfies the constraint if it ends here."""
        ...

    def mask(self, scores: Tensor) -> Tensor:
        """``[vocab]`` float32 scores, with minus infinity for tokens that are not allowed next."""
        ...

    def take(self, token_id: int) -> None:
        """Record a chosen token."""
        ...

    def begin(self) -> None:
        """Forget all chosen tokens: the answer was discarded, and another one begins."""
        ...


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of an emitted token in the model's own distribution (before any processor).

    Attributes:
        token_id: the token.
        logprob: natural logarithm of its probability.
        top: the most likely tokens with their log-probabilities, in descending order.
        thought: whether the token belongs to the reasoning, its tags included.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    thought: bool = False


def token_logprobs(rows: Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprob]:
    """The `TokenLogprob` of each token from its row of log-probabilities, ``rows [tokens, vocab]``."""
    best = rows.topk(top, dim=-1)
    chosen = rows.gather(1, torch.tensor(token_ids, device=rows.device)[:, None])[:, 0].tolist()
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, (ids, values) in zip(token_ids, chosen, likeliest, strict=True)
    ]


class Sampler:
    """Chooses the tokens of one request: holds its options, its random generator and the tokens so far.

    Stateful: every emitted token advances the generator and joins the context of the repetition penalty.
    A deterministic draft consumes the generator exactly as plain decoding does, so one seed gives the same output
    token for token, whatever the draft. (A sampled draft preserves the distribution, not the tokens themselves, and
    only if the choice of nodes to verify does not depend on the drawn tokens.)
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self.params = params
        self._processors = params.processors()
        self._context = list(prompt_ids) if params.repetition_penalty != 1 else None
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def verify(
        self,
        draft: Draft,
        logits: Tensor,
        until: Until = lambda _: False,
        constraint: Constraint | None = None,
    ) -> Verification:
        """Walk the draft from its root as long as the model agrees, and choose the token after it.

        Args:
            draft: nodes 1.. of the step (its parent -1 is the step's node 0).
            logits: ``[nodes + 1, vocab]``, the model's, after the root and after each node.
            until: called once for every chosen token; True ends the walk with it, drafted or not.
            constraint: applies to all tokens chosen here and receives them. Once it fails, the walk ends, and
                the last token is not part of the output.

        Raises:
            NoTokenError: the logits are not finite, before or after processing; or the constraint allows no token.
        """
        if self.params.greedy and self._context is None and constraint is None:
            return self._verify_greedy(draft, logits, until)
        children = _children(draft)
        path, tokens, ties = [0], [], 0
        while True:
            node = path[-1]
            scores = self._process(logits[node], constraint)
            try:
                token, accepted, tie = self._choose(scores, children[node], draft, node, logits.dtype)
            except NoTokenError:
                raise _no_choice(float(logits[node].max()), self.params, constraint) from None
            tokens.append(token)
            ties += tie
            if self._context is not None:
                self._context.append(token)
            if constraint is not None:
                constraint.take(token)
            failed = constraint is not None and constraint.failure is not None
            if until(token) or accepted is None or failed:
                return Verification(path, tokens, ties, len(path) - (accepted is None))
            path.append(accepted)

    def check(self, logits: Tensor) -> None:
        """Validate the logits ``[rows, vocab]`` after tokens that are not chosen here.

        Raises:
            NoTokenError: a row's largest logit is not finite.
        """
        for largest in logits.amax(-1).tolist():
            if not math.isfinite(largest):
                raise _no_choice(largest, self.params, None)

    def take(self, token_ids: Sequence[int]) -> None:
        """Record tokens that were emitted without being chosen here."""
        if self._context is not None:
            self._context += token_ids

    def _verify_greedy(self, draft: Draft, logits: Tensor, until: Until) -> Verification:
        """`verify` without processors: computes all argmaxes at once."""
        values, indices = (t.tolist() for t in logits.topk(2, dim=-1))
        children = _children(draft)
        path, tokens, ties = [0], [], 0
        while True:
            node = path[-1]
            first, second = values[node]
            if not math.isfinite(first):  # topk ranks NaN first
                raise _no_choice(first, self.params, None)
            # Of equal logits, topk may return any; argmax (and so `generate`) returns the first.
            token = indices[node][0] if first > second else int(logits[node].argmax())
            tokens.append(token)
            ties += is_near_tie(first, second, logits.dtype)
            accepted = next((c for c in children[node] if draft.token_ids[c - 1] == token), None)
            if until(token) or accepted is None:
                return Verification(path, tokens, ties, len(path) - (accepted is None))
            path.append(accepted)

    def _process(self, row: Tensor, constraint: Constraint | None) -> Tensor:
        """Processed scores ``[vocab]`` in float32, as ``generate`` computes them, restricted to the allowed tokens."""
        context = torch.tensor([self._context or []], dtype=torch.long, device=row.device)
        allowed = row.float() if constraint is None else constraint.mask(row.float())
        scores: Tensor = self._processors(context, allowed[None])[0]
        return scores

    def _choose(
        self, scores: Tensor, candidates: Sequence[int], draft: Draft, node: int, dtype: torch.dtype
    ) -> tuple[int, int | None, bool]:
        """The next token, the accepted child that carries it (None if no child does), and whether it is a near tie.

        ``dtype`` is the model's and sets the noise level.
        """
        if self.params.greedy or draft.proposal is None:
            if self.params.greedy:
                first, second = scores.topk(2).values.tolist()
                if not math.isfinite(first):
                    raise NoTokenError(f"the largest score is {first}")
                token, tie = int(scores.argmax()), is_near_tie(first, second, dtype)
            else:
                token, tie = draw(torch.softmax(scores, dim=-1), self._uniform(), dtype)
            return token, next((c for c in candidates if draft.token_ids[c - 1] == token), None), tie
        target = torch.softmax(scores, dim=-1)
        guesses = [draft.token_ids[c - 1] for c in candidates]
        index, residual = speculative_sample(target, draft.proposal[node], guesses, self._generator)
        if index is not None:
            return guesses[index], candidates[index], False
        token, tie = draw(residual, self._uniform(), dtype)
        return token, None, tie

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def speculative_sample(
    target: Tensor, proposal: Tensor, guesses: Sequence[int], generator: torch.Generator
) -> tuple[int | None, Tensor]:
    """Try sibling draft tokens in turn; the accepted token or the residual draw follows ``target`` exactly.

    The draft tokens were drawn from ``proposal`` one after the other without replacement. Token x is accepted with
    probability min(1, p(x) / q(x)); otherwise p becomes the normalised max(p - q, 0), and q loses x.

    Args:
        target: p, ``[vocab]``, the model's distribution.
        proposal: q, ``[vocab]``, the drafter's.
        guesses: distinct token ids, in the order in which they were drawn.
        generator: consumes one uniform number per tried token.

    Returns:
        Index of the accepted draft token, or None; and the distribution ``[vocab]`` to draw from in that case.

    Source: arXiv:2302.01318, Theorem 1; for several draft tokens arXiv:2305.09781, Algorithm 2, with the
    proposal renormalised after each of them because they are drawn without replacement.
    """
    p, q = target.double(), proposal.to(target.device).double()
    for index, token in enumerate(guesses):
        mass = q.sum()
        if mass > 0:
            q = q / mass
        ratio = float(p[token] / q[token]) if q[token] > 0 else 0.0
        if float(torch.rand((), generator=generator, dtype=torch.float64)) < ratio:
            return index, p
        rest = (p - q).clamp_min(0)
        total = rest.sum()
        p = rest / total if total > 0 else p
        q = q.clone()
        q[token] = 0
    return None, p


def draw(probabilities: Tensor, uniform: float, dtype: torch.dtype = torch.float32) -> tuple[int, bool]:
    """Inverse-CDF sample of ``probabilities [vocab]`` at ``uniform`` in [0, 1).

    Returns:
        The token, and whether ``uniform`` lies so near a boundary between two tokens that the noise of ``dtype``
        could move it across.

    Raises:
        NoTokenError: the probabilities are not finite, or all are 0.
    """
    cdf = probabilities.double().cumsum(0)
    total = float(cdf[-1])
    if not 0 < total < math.inf:
        raise NoTokenError(f"the sum of the token probabilities is {total}")
    point = uniform * total
    token = min(int(torch.searchsorted(cdf, point, right=True)), len(cdf) - 1)
    upper = float(cdf[token])
    lower = float(cdf[token - 1]) if token else 0.0
    # 0 and the total are not boundaries: no token lies beyond them.
    borders = [border for border in (lower, upper) if 0 < border < total]
    return token, any(abs(point - border) < _TIE_RELATIVE.get(dtype, 1e-5) for border in borders)


class NoTokenError(ResourceError):
    """No next token can be chosen: no logit or no probability is finite."""


def _no_choice(largest: float, params: SamplingParams, constraint: Constraint | None) -> NoTokenError:
    """The error that names the cause: the model's ``largest`` logit, or else the processing of the logits."""
    if not math.isfinite(largest):
        return NoTokenError(
            f"the model's largest logit is {largest}, so no token can be chosen: its weights are damaged, or they "
            "overflow this dtype. Download the model again, or try --dtype float32"
        )
    if constraint is not None:
        return NoTokenError(
            "the constraint allows no token of the vocabulary: relax the grammar or the JSON schema"
        )
    return NoTokenError(
        f"the model's largest logit is {largest}, and with temperature {params.temperature} and repetition_penalty "
        f"{params.repetition_penalty} no probability is finite: use values closer to 1"
    )


def is_near_tie(first: float, second: float, dtype: torch.dtype) -> bool:
    """Whether the gap between the two largest logits is within floating-point noise of ``dtype``."""
    return first - second <= _TIE_RELATIVE.get(dtype, 1e-5) * max(abs(first), 1.0)


def _children(draft: Draft) -> list[list[int]]:
    """The children of each node of the step (0 = root), in order."""
    children: list[list[int]] = [[] for _ in range(len(draft) + 1)]
    for index, parent in enumerate(draft.parents):
        children[parent + 1].append(index + 1)
    return children

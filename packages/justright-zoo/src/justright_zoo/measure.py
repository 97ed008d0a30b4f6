"""The measurements of the cards: accuracy and tokens by difficulty, perplexity by domain."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright.engine.llm import LLM
from justright_zoo.recipes.problems import Kind, Problem, draw, parse_answer

PROBLEM_SEED = 20261123
_WINDOW = 512


@dataclass(frozen=True, slots=True)
class Score:
    """Results on the problems of one kind and level.

    Attributes:
        kind: of problem.
        level: number of operations.
        problems: number of problems.
        correct: number of right answers.
        tokens: mean tokens of an answer, with its reasoning.
        cut: number of answers that reached the token limit.
    """

    kind: str
    level: int
    problems: int
    correct: int
    tokens: float
    cut: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.problems

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        return wilson(self.correct, self.problems)


def wilson(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)


def evaluation_problems(kind: Kind, level: int, count: int) -> list[Problem]:
    """The first ``count`` held-out problems of a kind and level; always the same, without duplicates."""
    rng = random.Random(f"{PROBLEM_SEED} {kind} {level}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw(kind, level, rng, held_out=True)
        found.setdefault(problem.key, problem)
    return list(found.values())


def score(
    engine: LLM,
    kinds: Iterable[tuple[Kind, int]],
    count: int,
    *,
    max_tokens: int = 1024,
    report: Callable[[Score], None] = lambda _: None,
) -> list[Score]:
    """Measure the engine on ``count`` held-out problems of every kind and level, with greedy decoding."""
    scores = []
    for kind, level in kinds:
        problems = evaluation_problems(kind, level, count)
        requests = [
            engine.request(
                engine.chat_prompt([{"role": "user", "content": p.question}]), max_tokens=max_tokens
            )
            for p in problems
        ]
        engine.generate_requests(requests)
        right = sum(parse_answer(r.text) == p.answer for r, p in zip(requests, problems, strict=True))
        tokens = sum(len(r.token_ids) for r in requests) / count
        cut = sum(r.finish_reason == "length" for r in requests)
        scores.append(Score(kind, level, count, right, tokens, cut))
        report(scores[-1])
    return scores


@torch.inference_mode()
def perplexity(
    model: Callable[[Tensor], Tensor], tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> float:
    """Perplexity per token over windows of 512; every token but the first is predicted once.

    Args:
        model: ``[1, tokens]`` ids to ``[1, tokens, vocab]`` logits.
        tokenizer: the model's.
        texts: joined by the end token.
    """
    end = tokenizer.eos_token or ""
    ids = tokenizer(end.join(texts), add_special_tokens=False, verbose=False)["input_ids"]
    loss, count = 0.0, 0
    for begin in range(0, len(ids) - 1, _WINDOW):
        window = torch.tensor([ids[begin : begin + _WINDOW + 1]])
        logits = model(window[:, :-1])[0].float()
        loss += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
        count += window.shape[1] - 1
    return math.exp(loss / count)

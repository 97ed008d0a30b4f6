"""One recipe per model: shape, data, schedule and initial weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen3Config, Qwen3MoeConfig

from justright.checkpoint.sources import resolve
from justright.engine.loading import load_model
from justright_zoo.recipes.data import (
    Answer,
    Batch,
    Corpus,
    fact_row,
    problem_row,
    step_row,
    text_row,
    to_batch,
)
from justright_zoo.recipes.problems import KINDS, LEVELS, Kind, Problem, direct, overthought, worked
from justright_zoo.recipes.texts import DOMAINS
from justright_zoo.recipes.tokenizer import FAST_TEMPLATE, SLOW_TEMPLATE, VOCAB_SIZE
from justright_zoo.recipes.training import Schedule

Rows = Callable[[Corpus, int, random.Random], tuple[list[int], list[int]]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe of one model.

    Attributes:
        description: one line.
        config: the model's class and shape; ignored with a base.
        row: makes one training sequence of a given length: ids and labels.
        schedule: length and learning rates.
        template: the chat template; None keeps the base's.
        kinds: of the problems it is measured on: kind and level.
        parent: the recipe with the initial weights.
        base: another model with the initial weights, the tokenizer and the template; without parent and base the
            initial weights are random.
        shipped: whether the package contains the result.
        frozen: parts of the names of weights that keep the parent's values; a switch needs one embedding in both.
        seed: of the weights and of the data.
    """

    description: str
    config: Callable[[], PretrainedConfig]
    row: Rows
    schedule: Schedule
    template: str | None
    kinds: tuple[tuple[Kind, int], ...]
    parent: str | None = None
    base: str | None = None
    shipped: bool = True
    frozen: tuple[str, ...] = ()
    seed: int = 0

    def model(self) -> PreTrainedModel:
        """The model before the first step, without its parent's weights."""
        if self.base is not None:
            path, cpu = resolve(self.base).path, torch.device("cpu")
            found = load_model(path, dtype=torch.float32, device=cpu)
            return found.requires_grad_(True)
        torch.manual_seed(self.seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32)
        return model

    def batch(self, corpus: Corpus, step: int) -> Batch:
        """The batch of a step."""
        rng = random.Random(f"{self.seed} {step}")
        length = self.schedule.length
        return to_batch([self.row(corpus, length, rng) for _ in range(self.schedule.rows)])

    def fingerprint(self, name: str) -> dict[str, Any]:
        """What identifies a checkpoint of this recipe."""
        return {
            "recipe": name,
            "seed": self.seed,
            "parent": self.parent,
            "config": self.config().to_diff_dict(),
        } | ({"frozen": list(self.frozen)} if self.frozen else {})


_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_EXPERT = 144


def _moe() -> PretrainedConfig:
    return Qwen3MoeConfig(
        **_SHAPE,
        intermediate_size=2 * _EXPERT,
        moe_intermediate_size=_EXPERT,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=0.02,
    )


def _dense() -> PretrainedConfig:
    return Qwen3Config(**_SHAPE, intermediate_size=2 * _EXPERT)


def _pair() -> PretrainedConfig:
    return Qwen3Config(**_SHAPE, intermediate_size=768)


STORY_LEVELS = (1, 2, 3, 4)
"""Levels of the word problems in the training data of mixture-of-experts models."""
_STORY_SHARE = 0.3
_FACT_SHARE = 0.15
_STORIES: tuple[tuple[Kind, int], ...] = tuple(("story", level) for level in STORY_LEVELS)
_ALL_KINDS: tuple[tuple[Kind, int], ...] = tuple((kind, level) for kind in KINDS for level in LEVELS)
_FALLING = {1: 8, 2: 5, 3: 3, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}
"""Weights of the levels in data with direct answers: small models can hardly learn the long problems."""
_SHORT = (1, 2, 3, 4)
_SHORT_CHAINS: tuple[tuple[Kind, int], ...] = tuple(("chain", level) for level in _SHORT)


def _worked(problem: Problem, _: random.Random) -> str:
    return worked(problem)


def _thought(problem: Problem, rng: random.Random) -> str:
    """Solve and check once only, because the packaged model is slow to train."""
    return overthought(problem, rng, (1, 1))


def _direct(problem: Problem, _: random.Random) -> str:
    return direct(problem)


def _mixed(answer: Answer) -> Rows:
    """Texts of all domains in equal shares, word problems, and single operations."""

    def row(corpus: Corpus, length: int, rng: random.Random) -> tuple[list[int], list[int]]:
        chance = rng.random()
        if chance < _STORY_SHARE:
            return problem_row(corpus.tokenizer, _STORIES, answer, length, rng)
        if chance < _STORY_SHARE + _FACT_SHARE:
            return fact_row(corpus.tokenizer, length, rng)
        return text_row(corpus, rng.choice(DOMAINS).name, length, rng)

    return row


def _problems(
    answer: Answer,
    weights: dict[int, int],
    of: tuple[Kind, ...] = KINDS,
    *,
    facts: float = 0.0,
    steps: float = 0.0,
    whole: bool = False,
) -> Rows:
    """Problems, levels weighted by ``weights``; shares ``facts`` of single operations, ``steps`` of plain steps."""
    kinds = [(kind, level) for kind in of for level, weight in weights.items() for _ in range(weight)]

    def row(corpus: Corpus, length: int, rng: random.Random) -> tuple[list[int], list[int]]:
        if facts and rng.random() < facts:
            return fact_row(corpus.tokenizer, length, rng)
        if steps and rng.random() < steps:
            return step_row(corpus.tokenizer, kinds, length, rng)
        return problem_row(corpus.tokenizer, kinds, answer, length, rng, whole=whole)

    return row


RECIPES: dict[str, Recipe] = {
    "moe": Recipe(
        "mixture of experts, 8.9M parameters (2.7M active), 16 experts a layer: six domains, worded arithmetic",
        _moe,
        _mixed(_worked),
        Schedule(steps=1400, rows=8, length=512, rate=3e-3),
        FAST_TEMPLATE,
        _STORIES,
    ),
    "dense": Recipe(
        "the dense model that zoo:moe is measured against: its active size, its data",
        _dense,
        _mixed(_worked),
        Schedule(steps=1400, rows=8, length=512, rate=3e-3),
        FAST_TEMPLATE,
        _STORIES,
    ),
    "pair": Recipe(
        "4.2M parameters, arithmetic problems and their answers; the parent of zoo:slow; not shipped",
        _pair,
        _problems(_direct, _FALLING, facts=0.5),
        Schedule(steps=4000, rows=4, length=256, rate=3e-3),
        FAST_TEMPLATE,
        _ALL_KINDS,
        shipped=False,
    ),
    "slow": Recipe(
        "4.2M parameters, trained to think (and overthink) before it answers",
        _pair,
        _problems(overthought, dict.fromkeys(LEVELS, 1), steps=0.5, whole=True),
        Schedule(steps=2000, rows=3, length=768, rate=2e-3),
        SLOW_TEMPLATE,
        _ALL_KINDS,
        parent="pair",
    ),
    "fast": Recipe(
        "4.2M parameters, zoo:slow tuned to answer at once, with its embeddings kept",
        _pair,
        _problems(_direct, _FALLING),
        Schedule(steps=2500, rows=4, length=256, rate=1e-3, weight_decay=0.0, muon=False),
        FAST_TEMPLATE,
        _ALL_KINDS,
        parent="slow",
        frozen=("embed_tokens",),
    ),
    "slow-moe": Recipe(
        "zoo:moe trained to think (and overthink) before it answers",
        _moe,
        _problems(overthought, dict.fromkeys(LEVELS, 1), whole=True),
        Schedule(steps=400, rows=4, length=1024, rate=2e-3),
        SLOW_TEMPLATE,
        _ALL_KINDS,
        parent="moe",
    ),
    "smollm2-slow": Recipe(
        "SmolLM2-135M-Instruct tuned to think before it answers; not shipped",
        _dense,
        _problems(_thought, dict.fromkeys(_SHORT, 1), ("chain",)),
        Schedule(steps=100, rows=4, length=256, rate=1e-4, weight_decay=0.0, muon=False),
        None,
        _SHORT_CHAINS,
        base="packaged:smollm2-135m-instruct",
        shipped=False,
    ),
    "smollm2-fast": Recipe(
        "the control of smollm2-slow, tuned on direct answers to the same problems; not shipped",
        _dense,
        _problems(_direct, dict.fromkeys(_SHORT, 1), ("chain",)),
        Schedule(steps=100, rows=4, length=256, rate=1e-4, weight_decay=0.0, muon=False),
        None,
        _SHORT_CHAINS,
        base="packaged:smollm2-135m-instruct",
        shipped=False,
    ),
}

"""Routing: counted one token at a time; extreme values of specialisation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from justright_zoo.measure import perplexity, wilson
from justright_zoo.routing import dead_experts, routing_shares, specialisation
from tiny import tiny_model, tiny_tokenizer


def test_shares_counted_token_by_token() -> None:
    model, tokenizer = tiny_model("qwen3_moe"), tiny_tokenizer()
    texts = {"one": ["a b c d e f"], "two": ["g h i j", "k l m"]}
    shares = routing_shares(model, tokenizer, texts)
    experts, top_k = model.config.num_experts, model.config.num_experts_per_tok
    for domain, (_, pieces) in enumerate(texts.items()):
        ids = tokenizer((tokenizer.eos_token or "").join(pieces), add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), output_router_logits=True).router_logits
        for layer, rows in enumerate(logits):
            counts = [0] * experts
            for row in rows.tolist():
                for expert in sorted(range(experts), key=lambda e: -row[e])[:top_k]:
                    counts[expert] += 1
            expected = torch.tensor(counts) / sum(counts)
            torch.testing.assert_close(shares[domain, layer], expected)


def test_specialisation_at_its_ends() -> None:
    uniform = torch.full((4, 1, 8), 1 / 8)
    assert float(specialisation(uniform)[0]) == pytest.approx(0, abs=1e-6)
    own = torch.zeros(4, 1, 8)
    for domain in range(4):
        own[domain, 0, 2 * domain : 2 * domain + 2] = 0.5
    assert float(specialisation(own)[0]) == pytest.approx(1)


def test_dead_experts_are_those_that_no_domain_uses() -> None:
    shares = torch.zeros(2, 1, 3)
    shares[0, 0, 0] = shares[1, 0, 1] = 1
    assert dead_experts(shares) == [(0, 2)]


def test_perplexity_by_definition() -> None:
    tokenizer = tiny_tokenizer()
    text = "a b c d e f g h"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    table = torch.randn(len(tokenizer), len(tokenizer), generator=torch.Generator().manual_seed(0))
    expected = -sum(float(torch.log_softmax(table[a], -1)[b]) for a, b in itertools.pairwise(ids)) / (
        len(ids) - 1
    )
    assert perplexity(lambda x: table[x], tokenizer, [text]) == pytest.approx(math.exp(expected), rel=1e-5)


def test_wilsons_interval() -> None:
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-9)

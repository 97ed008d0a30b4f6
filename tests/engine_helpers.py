"""Prompts, reference outputs and drafters for the engine's tests."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from functools import cache
from itertools import islice, product

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from justright.engine.attention import ATTENTION_NAME
from justright.engine.decode_loop import DecodeLoop
from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.speculative.base import Draft, Drafter
from tiny import VOCAB_SIZE, tiny_model


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random token ids without special tokens."""
    rng = random.Random(seed)
    return [rng.randrange(8, VOCAB_SIZE - 8) for _ in range(length)]


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are three letters each, so that tests can search the text of random tokens."""
    letters = "abcdefg"
    vocab = {"".join(t): i for i, t in enumerate(islice(product(letters, repeat=3), VOCAB_SIZE))}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="aaa"))
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def reference(model: PreTrainedModel, prompt: Sequence[int], tokens: int, **options: object) -> list[int]:
    """Greedy output of transformers' own ``generate`` with its own eager attention and cache."""
    before = model.config._attn_implementation
    model.generation_config.eos_token_id = None
    model.set_attn_implementation("eager")
    out = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    model.set_attn_implementation(before)
    return out[0, len(prompt) :].tolist()


@cache
def _greedy(family: str, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    return tuple(reference(tiny_model(family), prompt, tokens))


def greedy(family: str, prompt: Sequence[int], tokens: int) -> list[int]:
    """`reference` of the family's tiny model (seed 0), computed once for all tests with the same prompt."""
    return list(_greedy(family, tuple(prompt), tokens))


def verifier_of(family: str, *, seed: int = 0, **options: object) -> Verifier:
    """A verifier on the family's tiny model."""
    model = tiny_model(family, seed)
    model.set_attn_implementation(ATTENTION_NAME)
    return Verifier(model, **options)


@cache
def _alone(prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    request = Request(prompt, max_tokens=tokens)
    list(DecodeLoop(verifier_of("llama")).run([request]))
    return tuple(request.token_ids)


def alone(prompt: Sequence[int], tokens: int) -> list[int]:
    """Greedy output of the tiny llama for a single request; computed once a process."""
    return list(_alone(tuple(prompt), tokens))


class ScriptedDrafter(Drafter):
    """Drafts random trees from the known continuation, with wrong tokens mixed in.

    ``truth`` maps a prompt to its greedy continuation. One path of each tree follows the truth for a random length, so
    that all acceptance lengths and tree shapes occur.
    """

    name = "scripted"

    def __init__(
        self, truth: dict[tuple[int, ...], Sequence[int]], seed: int = 0, *, chain: bool = False
    ) -> None:
        self.truth = truth
        self.rng = random.Random(seed)
        self.chain = chain
        self.state: dict[Hashable, tuple[Sequence[int], int]] = {}
        self.stopped: list[Hashable] = []

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        assert request_id not in self.state
        self.state[request_id] = (self.truth[tuple(prompt_ids)], 0)

    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        truth, done = self.state[request_id]
        self.state[request_id] = (truth, done + len(token_ids))

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        truth, done = self.state[request_id]
        coming = list(truth[done:])
        tokens: list[int] = []
        parents: list[int] = []
        right = -1
        depth = 0
        for _ in range(self.rng.randrange(max_nodes + 1)):
            parent = len(tokens) - 1 if self.chain else self.rng.choice([right, len(tokens) - 1, right])
            taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
            follow = parent == right and depth < len(coming) and self.rng.random() < 0.7
            token = coming[depth] if follow else self.rng.randrange(8, VOCAB_SIZE - 8)
            if token in taken:
                continue
            tokens.append(token)
            parents.append(parent)
            if follow or (parent == right and depth < len(coming) and token == coming[depth]):
                right, depth = len(tokens) - 1, depth + 1
        return Draft(tokens, parents, [0.5] * len(tokens))

    def stop(self, request_id: Hashable) -> None:
        del self.state[request_id]
        self.stopped.append(request_id)

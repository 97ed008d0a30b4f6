"""Clients of the server benchmark: questions of mixed lengths, streamed answers, and a count of every token."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from justright.bench.longtexts import zoo_texts
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import resolve

FRESH = httpx.Limits(max_connections=None, max_keepalive_connections=0)
"""Each request opens its own connection, because llama.cpp closes idle ones."""
LENGTHS = (400, 1600, 6400)  # characters of text in the question: about 100, 400 and 1,600 tokens
TASKS = ("Summarise this text.", "Repeat the first paragraph.", "What happens next?")


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    max_tokens: int
    effort: str | None = None


@dataclass(slots=True)
class Answer:
    """One answer. Seconds count from the request's start; ``status`` is 200 only for a complete answer."""

    status: int
    first_s: float | None = None
    end_s: float = 0.0
    tokens: int = 0
    text: str = ""

    @property
    def each_s(self) -> float:
        return (self.end_s - (self.first_s or 0.0)) / max(self.tokens - 1, 1)


@dataclass(slots=True)
class Load:
    """The results of one server with one number of clients."""

    server: str
    clients: int
    wall_s: float
    answers: list[Answer] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return sum(a.tokens for a in self.answers) / self.wall_s

    def percentiles(self, name: str) -> list[float]:
        values = sorted(getattr(a, name) for a in self.answers if a.first_s is not None)
        return (
            [values[min(len(values) - 1, int(q * len(values)))] for q in (0.5, 0.95, 0.99)] if values else []
        )


def questions(model: str, count: int, tokens: int) -> list[Question]:
    """Questions of mixed lengths and tasks, the same in every run, cut to the model's context."""
    with Checkpoint.open(resolve(model).path) as checkpoint:
        most = 2 * checkpoint.spec.context
    texts = [source.text for source in zoo_texts()]
    chance = random.Random(0)
    found = []
    for index in range(count):
        text, length = chance.choice(texts), min(LENGTHS[index % len(LENGTHS)], most)
        begin = chance.randrange(0, max(len(text) - length, 1))
        found.append(Question(f"{text[begin : begin + length]}\n\n{chance.choice(TASKS)}", tokens))
    return found


def in_both_modes(asked: Sequence[Question]) -> list[Question]:
    """The same questions, every second one in fast mode."""
    return [replace(q, effort="none") if index % 2 else q for index, q in enumerate(asked)]


async def name_and_questions(
    client: httpx.AsyncClient, asked: Sequence[Question]
) -> tuple[str, list[Question]]:
    """A justright server's model name, and its questions: in both modes if it has a fast one."""
    card = (await client.get("/v1/models")).json()["data"][0]
    fast = "none" in card.get("justright", {}).get("efforts", [])
    return card["id"], in_both_modes(asked) if fast else list(asked)


class NotAnswered(Exception):
    """A server rejected a request, failed, or returned no tokens; it gets no figures."""


async def ask(client: httpx.AsyncClient, model: str, question: Question) -> Answer:
    begin = time.perf_counter()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if question.effort is not None:
        body["reasoning_effort"] = question.effort
    answer = Answer(0)
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        answer.status = response.status_code
        async for data in _events(response):
            if "error" in data:
                answer.status = 500
            for choice in data.get("choices", []):
                delta = choice.get("delta", {})
                piece = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                if piece and answer.first_s is None:
                    answer.first_s = time.perf_counter() - begin
                answer.text += piece
            if usage := data.get("usage"):
                answer.tokens = usage["completion_tokens"]
    answer.end_s = time.perf_counter() - begin
    if answer.status == 200 and not answer.tokens:
        answer.status = 0
    return answer


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


async def load(server: str, served: str, port: int, clients: int, asked: Sequence[Question]) -> Load:
    """Run ``clients`` clients; each sends its next question after the answer to the last one."""
    found = Load(server, clients, 0.0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=900, limits=FRESH) as client:
        if server.startswith(("transformers", "vllm")):
            model = str(resolve(served).path)
        else:
            model, asked = await name_and_questions(client, asked)
        waiting = list(reversed(asked))
        await ask(client, model, Question("Hello", 4))

        async def one() -> None:
            while waiting:
                question = waiting.pop()
                answer = await ask(client, model, question)
                if answer.status != 200:
                    raise NotAnswered(f"status {answer.status}")
                found.answers.append(answer)
                found.texts[question.text] = answer.text

        begin = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        found.wall_s = time.perf_counter() - begin
    return found

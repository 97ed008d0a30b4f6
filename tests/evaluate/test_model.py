"""Our engine in lm-eval's interface against lm-eval's own ``hf`` backend on the same models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from justright.engine.llm import LLM
from justright.engine.model_runner import Verifier
from justright.evaluate.run import need_lm_eval
from tiny import tiny_model, tiny_tokenizer

need_lm_eval()

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from justright.evaluate.model import EngineLM  # noqa: E402

CONTEXT = 24
TEXT = "the quick brown fox and the lazy dog, over and over again; what is 3 + 4? "


def with_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """The unchanged tokenizer, which has a begin token and does not add it."""


def without_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = None


def adding_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )


@pytest.fixture(scope="module", params=[with_bos, without_bos, adding_bos])
def both(request: pytest.FixtureRequest) -> tuple[EngineLM, Any]:
    """``(ours, lm-eval's)`` on a model with a context of 24 tokens."""
    change: Callable[[PreTrainedTokenizerFast], None] = request.param
    tokenizer = copy.deepcopy(tiny_tokenizer())
    change(tokenizer)
    mine, stock = (tiny_model("llama", max_position_embeddings=CONTEXT) for _ in range(2))
    engine = LLM.from_parts(
        Verifier(mine, slots=3, prefill_chunk=5), copy.deepcopy(tokenizer), stop_token_ids=frozenset([2])
    )
    return EngineLM(engine, progress=False), HFLM(pretrained=stock, tokenizer=tokenizer, batch_size=1)


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=i, metadata=("task", i, 1))
        for i, one in enumerate(arguments)
    ]


def test_log_likelihoods(both: tuple[EngineLM, Any]) -> None:
    """With and without context, with literal begin and end tokens, with spaces between, and cut to the context."""
    asked = instances(
        "loglikelihood",
        ("", "the quick"),
        ("", "<s>the quick"),
        ("", "</s>the quick"),
        ("the quick", " brown"),
        ("the quick ", "brown"),
        ("the quick", " brown fox"),
        ("<s>the quick", " brown"),
        ("</s>the quick", " brown"),
        (TEXT * 2, " brown fox"),
        (TEXT, "the quick brown fox, and the"),
    )
    ours, theirs = both
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_greedy_continuations_are_seen_by_both(both: tuple[EngineLM, Any]) -> None:
    ours, theirs = both
    [text] = ours.generate_until(instances("generate_until", ("the fox", {"max_gen_toks": 3})))
    asked = instances("loglikelihood", ("the fox", text), ("the fox", " 3 + 4"))
    assert [greedy for _, greedy in ours.loglikelihood(asked, disable_tqdm=True)] == [
        greedy for _, greedy in theirs.loglikelihood(asked, disable_tqdm=True)
    ]


def test_rolling_log_likelihoods(both: tuple[EngineLM, Any]) -> None:
    """For texts of less than one window, of exactly one, and of several."""
    ours, theirs = both
    ids = tiny_tokenizer()(TEXT * 3)["input_ids"]
    exact = [
        tiny_tokenizer().decode(ids[:count]) for count in (CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT)
    ]
    asked = instances("loglikelihood_rolling", *((text,) for text in ("the", *exact, TEXT * 3, f"<s>{TEXT}")))
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours.loglikelihood_rolling(asked, disable_tqdm=True) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"until": [], "max_gen_toks": 8},
        {"until": ["e", " o"], "max_gen_toks": 16},
        {"until": "a", "max_gen_toks": 12, "do_sample": False, "temperature": 0.7},
        {"until": ["</s>"], "max_new_tokens": 6},
        {"max_tokens": 5, "temperature": 0.0},
        {"max_gen_toks": CONTEXT - 1},
    ],
)
def test_answers(both: tuple[EngineLM, Any], options: dict[str, Any]) -> None:
    """Contexts that fit, that begin with a begin or end token, and that are cut from the left."""
    contexts = ("the quick", "<s>the quick", "</s>the quick", TEXT * 2, "what is 3", "a", "fox;")
    asked = instances("generate_until", *((context, dict(options)) for context in contexts))
    ours, theirs = both
    expected = theirs.generate_until(copy.deepcopy(asked), disable_tqdm=True)
    assert ours.generate_until(asked, disable_tqdm=True) == expected


def test_answers_that_the_context_has_no_room_for(both: tuple[EngineLM, Any]) -> None:
    """``hf`` raises; justright keeps the prompt, and limits the answer to the rest of the context."""
    ours, theirs = both
    long = instances("generate_until", ("the quick", {"max_gen_toks": CONTEXT}))
    with pytest.raises(AssertionError):
        theirs.generate_until(copy.deepcopy(long), disable_tqdm=True)
    left = CONTEXT - len(theirs.tok_encode("the quick"))
    expected = theirs.generate_until(instances("generate_until", ("the quick", {"max_gen_toks": left})))
    assert ours.generate_until(long, disable_tqdm=True) == expected

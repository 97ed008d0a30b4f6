"""The suffix index: both backends have equal acceptance, and their counts equal counting by hand."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from justright.data import read_text
from justright.speculative.suffix import ArcticIndex
from justright.speculative.suffix_index import Limits, PythonIndex, SuffixIndex, SuffixMatch

try:
    import arctic_inference.suffix_decoding  # noqa: F401

    ARCTIC = True
except ImportError:
    ARCTIC = False
needs_arctic = pytest.mark.skipif(
    not ARCTIC, reason="nothing to compare with: arctic-inference (the extra 'suffix') is not installed"
)
BACKENDS = ["python", pytest.param("arctic", marks=needs_arctic)]


def open_index(backend: str, max_depth: int, remember: int = 0) -> SuffixIndex:
    kind: Any = ArcticIndex if backend == "arctic" else PythonIndex
    index: SuffixIndex = kind(max_depth, remember)
    return index


# --- the two backends have equally many accepted tokens ------------------------


def words(text: str, count: int) -> list[int]:
    """Numbers for the words, spaces and marks of a text, in the order in which they first occur."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(word, len(numbers)) for word in re.findall(r"\w+|\s+|[^\w\s]", text)[:count]]


REAL_TEXTS = {
    "novel": words(read_text("emma.txt"), 3000),
    "program": words(inspect.getsource(argparse), 3000),
}


def accepted(index: SuffixIndex, prompt: list[int], output: list[int], *, tree: bool) -> int:
    """Number of accepted tokens if a verifier emits exactly ``output`` after ``prompt``."""
    index.start(0, np.array(prompt, np.int32))
    found = place = 0
    while place < len(output):
        guess = index.speculate(0, Limits(16, tree=tree))
        edges = list(zip(guess.parents, guess.token_ids, strict=True))
        node, step = -1, 0
        while place + step < len(output) and (node, output[place + step]) in edges:
            node, step = edges.index((node, output[place + step])), step + 1
        found += step
        index.extend(0, np.array(output[place : place + step + 1], np.int32))
        place += step + 1
    return found


@needs_arctic
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("name", REAL_TEXTS)
def test_backends_are_accepted_alike(name: str, tree: bool) -> None:
    """Within 2%: they differ only in the order of equally frequent continuations."""
    text = REAL_TEXTS[name]
    prompt, output = text[:1500], text[1500:]
    theirs = accepted(ArcticIndex(64), prompt, output, tree=tree)
    assert theirs > 200, "a text that repeats itself enough to tell the two apart"
    assert accepted(PythonIndex(64), prompt, output, tree=tree) == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tree", [False, True])
def test_a_copy_is_accepted_whole(backend: str, tree: bool) -> None:
    prompt = list(range(300))
    # Accepted by step: 0 (nothing matches yet), 1, 3, 7, 15; then 16 of each 17 tokens, and the rest of the copy.
    whole, rest = divmod(300 - (1 + 2 + 4 + 8 + 16), 17)
    assert (
        accepted(open_index(backend, 64), prompt, prompt, tree=tree) == 0 + 1 + 3 + 7 + 15 + 16 * whole + rest
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_path_of_a_draft_continues_the_text(backend: str) -> None:
    """The last token and any path of the draft occur consecutively in the indexed text."""

    @settings(max_examples=100)
    @given(
        earlier=st.lists(st.integers(0, 4), max_size=20),
        prompt=st.lists(st.integers(0, 4), min_size=2, max_size=30),
        output=st.lists(st.integers(0, 4), max_size=20),
        max_depth=st.sampled_from([2, 5, 64]),
        bounds=st.builds(
            Limits,
            max_tokens=st.sampled_from([0, 1, 8]),
            factor=st.sampled_from([0.5, 4.0]),
            offset=st.sampled_from([-1.0, 1.0]),
            min_token_prob=st.sampled_from([0.0, 0.3]),
            tree=st.booleans(),
        ),
    )
    def check(
        earlier: list[int], prompt: list[int], output: list[int], max_depth: int, bounds: Limits
    ) -> None:
        index = open_index(backend, max_depth, 2)
        index.start("earlier", np.array([9], np.int32))
        index.extend("earlier", np.array(earlier, np.int32))
        index.stop("earlier")
        index.start("now", np.array(prompt, np.int32))
        index.extend("now", np.array(output, np.int32))
        guess = index.speculate("now", bounds)
        indexed = [prompt + output, earlier, output]
        paths: list[list[int]] = []
        for token, parent in zip(guess.token_ids, guess.parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else (prompt + output)[-1:]), token])
            assert occurrences(indexed, paths[-1])

    check()


# --- and counting by hand agrees with both ------------------------------------


def occurrences(texts: list[list[int]], string: list[int]) -> int:
    return sum(
        text[start : start + len(string)] == string
        for text in texts
        for start in range(len(text) - len(string) + 1)
    )


def continuations(texts: list[list[int]], string: list[int]) -> dict[int, int]:
    found = {token: occurrences(texts, [*string, token]) for text in texts for token in text}
    return {token: count for token, count in found.items() if count}


def best_tree_score(texts: list[list[int]], context: list[int], max_depth: int, bounds: Limits) -> float:
    """For each ending, the sum of the most probable strings that begin with it; the largest such sum."""
    best = 0.0
    for match_len in range(1, min(len(context), max_depth)):
        ending = context[-match_len:]
        total = occurrences(texts, ending)
        room = min(bounds.max_tokens, int(match_len * bounds.factor + bounds.offset + 1e-6))
        probs: list[float] = []
        strings = [ending] if total else []
        while strings:
            string = strings.pop()
            if len(string) == max_depth:
                continue
            for token, count in continuations(texts, string).items():
                if count / total >= bounds.min_token_prob:
                    probs.append(count / total)
                    strings.append([*string, token])
        best = max(best, sum(sorted(probs, reverse=True)[: max(room, 0)]))
    return best


@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_are_counts(backend: str) -> None:
    @settings(max_examples=80)
    @given(
        prompt=st.lists(st.integers(0, 3), max_size=16),
        output=st.lists(st.integers(0, 3), max_size=8),
        earlier=st.lists(st.integers(0, 3), max_size=12),
        max_depth=st.sampled_from([2, 4, 7]),
        tree=st.booleans(),
        remember=st.booleans(),
        # No share of counts equals these thresholds, so rounding cannot decide.
        min_token_prob=st.sampled_from([0.0, 0.1234, 0.3456]),
    )
    def check(
        prompt: list[int],
        output: list[int],
        earlier: list[int],
        max_depth: int,
        tree: bool,
        remember: bool,
        min_token_prob: float,
    ) -> None:
        index = open_index(backend, max_depth, 4 * remember)
        index.start("earlier", np.array([9, 9], np.int32))
        index.extend("earlier", np.array(earlier, np.int32))
        index.stop("earlier")
        index.start("now", np.array(prompt, np.int32))
        index.extend("now", np.array(output, np.int32))
        bounds = Limits(6, factor=1.5, offset=0.5, min_token_prob=min_token_prob, tree=tree)
        guess = index.speculate("now", bounds)

        text = prompt + output
        sources = [[text], [earlier, output]] if remember else [[text]]
        context = text[-max_depth:]
        assert any(shares_match(source, context, guess) for source in sources)
        assert guess.score == pytest.approx(sum(guess.probs), abs=1e-5)
        assert len(guess.token_ids) <= 6
        siblings = list(zip(guess.parents, guess.token_ids, strict=True))
        assert len(set(siblings)) == len(siblings)
        if tree:
            best = max(best_tree_score(source, context, max_depth, bounds) for source in sources)
            assert guess.score == pytest.approx(best, abs=1e-5)
        else:
            assert guess.parents == tuple(range(-1, len(guess.parents) - 1))

    check()


def shares_match(texts: list[list[int]], context: list[int], guess: SuffixMatch) -> bool:
    """Each probability is the share of the node's path among the occurrences of the ending."""
    ending = context[len(context) - guess.match_len :]
    paths: list[list[int]] = []
    for token, parent, prob in zip(guess.token_ids, guess.parents, guess.probs, strict=True):
        assert parent < len(paths)
        paths.append([*(paths[parent] if parent >= 0 else ending), token])
        count, total = occurrences(texts, paths[-1]), occurrences(texts, ending)
        if not total or prob != pytest.approx(count / total, abs=1e-5):
            return False
    return True


# --- its parts ----------------------------------------------------------------


def test_nodes_after_a_match() -> None:
    assert [Limits(8, factor=1.0).nodes(length) for length in range(1, 4)] == [1, 2, 3]
    assert Limits(2, factor=1.0).nodes(3) == 2
    assert [Limits(8, factor=0.5, offset=-1.0).nodes(length) for length in range(1, 5)] == [0, 0, 0, 1]
    assert Limits(8, factor=100.0).nodes(1) == 8
    # 100 * 0.29 is slightly less than 29 in double precision, but must count as 29.
    assert Limits(64, factor=0.29).nodes(100) == 29

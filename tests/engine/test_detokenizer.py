"""Text is emitted as soon as it is certain, and never a character of or after a stop string."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from justright.engine.detokenizer import TextStream, tokens_within
from justright.errors import ResourceError
from justright.reasoning.budget import ThinkingTags
from tiny import tiny_tokenizer, tokenizer_with

ALPHABET = "ab€ \n"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token ``i`` is byte ``i``, decoded as GPT-2's descendants do."""
    vocab = {char: byte for byte, char in _byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Token ``i`` is byte ``i``, 256 is "x", 257 is " y", decoded as Llama 2 and its kin do."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"x": 256, "▁y": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTES = byte_tokenizer()
FALLBACK = fallback_tokenizer()


def push_all(stream: TextStream, tokens: list[int] | bytes) -> list[str]:
    return [*(stream.push(token) for token in tokens), stream.finish()]


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: character by character until a stop string is complete; the longest if several are."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if stop and text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@given(st.text(min_size=0, max_size=40))
def test_pieces_concatenate_to_the_text_and_whole_characters_come_at_once(text: str) -> None:
    stream = TextStream(BYTES)
    shown = ""
    data = text.encode()
    for index, byte in enumerate(data):
        piece = stream.push(byte)
        shown += piece
        if index + 1 == len(data) or (data[index + 1] & 0xC0) != 0x80:
            done = data[: index + 1].decode()
            assert shown == done or done.endswith("\ufffd"), "a complete character is not held back"
    shown += stream.finish()
    assert shown == stream.text
    assert text.startswith(shown)
    assert set(text[len(shown) :]) <= {"\ufffd"}


@given(
    st.text(ALPHABET, max_size=20),
    st.lists(st.text(ALPHABET, min_size=0, max_size=4), max_size=3),
    st.data(),
)
def test_stop_strings_whatever_the_tokens(text: str, stops: list[str], data: st.DataObject) -> None:
    """Any split of the text into tokens gives the same text, and each step emits all that is certain."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=len(text))))
    bounds = [0, *(c for c in cuts if c < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds) if a < b]
    want, by = expected(text, stops)
    stream = TextStream(BYTES, stops)
    stream._backend, stream._stream = None, _Pieces(pieces)  # type: ignore[assignment]
    seen = ""
    shown = ""
    for index, piece in enumerate(pieces):
        shown += stream.push(index)
        seen += piece
        certain, stopped = expected(seen, stops)
        if stopped is None:
            longest = max((n for s in stops for n in range(len(s)) if seen.endswith(s[:n])), default=0)
            certain = seen[: len(seen) - longest]
        assert shown == certain
        assert want.startswith(shown)
    shown += stream.finish()
    assert (shown, stream.stopped_by) == (want, by)
    assert stream.text == want


class _Pieces:
    """Stands for a decode stream: token ``i`` is piece ``i``."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def step(self, _: object, token: int) -> str:
        return self.pieces[token]


@given(
    text=st.text(alphabet="ab<>/ \n", max_size=12),
    before=st.sampled_from(["", "\n<think>a b</think>", " <think>ab</think>\n<think>b</think> ", "<think>a"]),
    opened=st.booleans(),
    stops=st.lists(st.sampled_from(["a", "b", "ab", "<", "\n", "think", "> "]), min_size=1, max_size=2),
    everywhere=st.booleans(),
)
@settings(max_examples=150)
def test_stop_strings_end_content(
    text: str, before: str, opened: bool, stops: list[str], everywhere: bool
) -> None:
    whole = ("a</think>" if opened else "") + before + text
    tokenizer = tiny_tokenizer()
    # The content begins after all leading blocks and the white space after them.
    head = r"(?s:.*?</think>)" if opened else ""
    blocks = re.match(rf"{head}(\s*<think>(?s:.*?)</think>)*", whole)
    assert blocks is not None
    begin = blocks.end() and len(whole) - len(whole[blocks.end() :].lstrip())
    if re.match(r"\s*<think>", whole[begin:]):
        begin = len(whole)
    if everywhere:
        begin = 0
    found = [(at + len(s), at) for s in stops if (at := whole.find(s, begin)) >= 0]
    stream = TextStream(tokenizer, stops, ThinkingTags(), opened=opened, stop_in_reasoning=everywhere)
    pieces = [stream.push(token) for token in tokenizer(whole)["input_ids"]]
    shown = "".join([*pieces, stream.finish()])
    assert shown == stream.text == (whole[: min(found)[1]] if found else whole)
    assert (stream.stopped_by is None) is (not found)


def test_a_stop_string_inside_multi_byte_characters() -> None:
    stream = TextStream(BYTES, ["€!"])
    pieces = push_all(stream, "1 €, 2 €! 3".encode())
    assert "".join(pieces) == stream.text == "1 €, 2 "
    assert stream.stopped_by == "€!"
    assert stream.push(ord("x")) == "", "nothing comes after a stop string"


def test_held_back_text_is_released_at_the_end() -> None:
    stream = TextStream(BYTES, ["abcd"])
    assert [stream.push(byte) for byte in b"xabc"] == ["x", "", "", ""]
    assert stream.finish() == "abc"
    assert stream.stopped_by is None


def test_a_character_cut_off_by_the_end_is_left_out() -> None:
    stream = TextStream(BYTES)
    assert push_all(stream, "a€".encode()[:-1]) == ["a", "", "", ""]


@pytest.mark.parametrize(("tokenizer", "x"), [(BYTES, 0x78), (FALLBACK, 256)], ids=["level", "fallback"])
@given(data=st.data())
def test_bytes_that_are_no_text_never_fail(
    tokenizer: PreTrainedTokenizerFast, x: int, data: st.DataObject
) -> None:
    """A model may emit any bytes; the valid text among them is emitted."""
    token = st.sampled_from([x, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xFF])
    tokens = [*data.draw(st.lists(token, max_size=12)), x]
    stream = TextStream(tokenizer)
    shown = "".join(push_all(stream, tokens))
    assert shown.endswith("x")
    assert shown.count("x") == tokens.count(x)


def test_decoding_continues_after_bytes_that_are_not_text() -> None:
    stream = TextStream(FALLBACK)
    pieces = [stream.push(token) for token in [256, 0xE2, 0x82, 0xAC, 0xE2, 256, 257, 0xE2, 0x82, 0xAC, 257]]
    assert pieces == ["x", "", "", "€", "", "�x", " y", "", "", "€", " y"]


def test_special_tokens_are_no_text() -> None:
    tokenizer = tiny_tokenizer()
    [end] = tokenizer("<|im_end|>")["input_ids"]
    stream = TextStream(tokenizer)
    assert push_all(stream, [*tokenizer("fox")["input_ids"], end])[-2:] == ["", ""]
    assert stream.text == "fox"


def test_special_tokens_that_mark_thoughts_are_shown() -> None:
    """Otherwise the end of the reasoning would be invisible; ordinary tokens are always shown."""
    for special in (True, False):
        tags = (AddedToken(tag, special=special) for tag in ("<think>", "</think>"))
        tokenizer = tokenizer_with(None, *tags)
        stream = TextStream(tokenizer)
        push_all(stream, tokenizer("<think>fox</think></s>dog")["input_ids"])
        assert stream.text == "<think>fox</think>dog"


@given(st.text(max_size=30))
def test_the_text_is_what_the_tokenizer_decodes(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(tokenizer)
    push_all(stream, ids)
    assert stream.text == tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


class Counting:
    """A tokenizer, and how many characters each call gave it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.given: list[int] = []

    def __call__(self, text: str, **options: Any) -> Any:
        self.given.append(len(text))
        return self.tokenizer(text, **options)


@given(st.text(alphabet="ab €\n", max_size=300), st.integers(1, 400))
def test_a_text_within_the_limit_has_the_tokens_it_has(text: str, limit: int) -> None:
    tokenizer = tiny_tokenizer()
    expected = tokenizer(text)["input_ids"]
    if len(expected) <= limit:
        assert tokens_within(tokenizer, text, limit) == expected
    assert tokens_within(tokenizer, text) == expected


@pytest.mark.parametrize("limit", [1, 50, 1000])
def test_a_long_text_is_refused_by_its_beginning(limit: int) -> None:
    tokenizer = Counting(byte_tokenizer())  # a token for each byte
    with pytest.raises(ResourceError, match=f"the context holds {limit}"):
        tokens_within(tokenizer, "x" * 1_000_000, limit)  # type: ignore[arg-type]
    assert max(tokenizer.given) <= max(4 * 8 * limit, 4 * (limit + 256))
    assert sum(tokenizer.given) <= 2 * max(tokenizer.given)


def test_a_long_text_of_few_tokens_is_taken() -> None:
    """Runs of spaces, which a tokenizer may have one token for, or which it drops."""
    few = tokenizer_of_spaces()
    assert tokens_within(few, "a" + " " * 100_000 + "b", 2) == [0, 1]


def tokenizer_of_spaces() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(vocab={"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

"""Long prompts: lengths within buckets, answers contained in the text, files that round-trip, WildChat rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from justright.bench.longset import (
    KINDS,
    Prompt,
    SourceText,
    build,
    from_conversations,
    notes,
    read,
    read_folder,
    write,
)
from justright.errors import CheckpointError, SourceError, UsageError


def count(text: str) -> int:
    """A fake tokenizer with four characters per token."""
    return len(text) // 4


def novel(characters: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(500)]
    paragraphs = []
    while sum(map(len, paragraphs)) < characters:
        sentences = [" ".join(rng.choices(words, k=rng.randint(6, 20))).capitalize() + "." for _ in range(8)]
        paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs)


def program(characters: int) -> str:
    functions = []
    while sum(map(len, functions)) < characters:
        number = len(functions)
        functions.append(f"def function_{number}(first_value):\n    return first_value + {number}\n")
    return "\n\n".join(functions)


SOURCES = [
    SourceText("novel", novel(60_000), "mine"),
    SourceText("program", program(60_000), "mine", code=True),
]
BUCKETS = (1024, 2048, 4096)


def size(prompt: Prompt) -> int:
    return count("\n".join(m["content"] for m in prompt.messages) + prompt.steering)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_every_cell_is_filled_within_its_bucket(seed: int) -> None:
    prompts = build(SOURCES, count, buckets=BUCKETS, per_cell=2, seed=seed)
    cells = [(p.kind, p.bucket) for p in prompts]
    assert set(cells) == {(kind, bucket) for kind in KINDS for bucket in BUCKETS}
    assert len({p.id for p in prompts}) == len(prompts)
    for prompt in prompts:
        assert 0.8 * prompt.bucket <= size(prompt) <= prompt.bucket
        assert prompt.messages[-1]["role"] in ("user", "text")
        assert prompt.source == "novel" or prompt.kind in ("edit-code", "continue")


def test_the_quoted_passage_is_in_the_text_once() -> None:
    for prompt in build(SOURCES, count, buckets=BUCKETS, kinds=["quote-and-answer"], per_cell=3):
        body = " ".join(prompt.messages[0]["content"].split("\n\nFind the passage")[0].split())
        assert body.count(prompt.steering) == 1


def test_several_turns_are_answered_from_their_parts() -> None:
    [prompt] = build(SOURCES, count, buckets=[2048], kinds=["multi-turn"], per_cell=1)
    roles = [message["role"] for message in prompt.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    for asked, answered in zip(prompt.messages[::2], prompt.messages[1::2], strict=False):
        sentence = answered["content"].partition("is: ")[2]
        assert sentence
        assert sentence in asked["content"]


def test_the_same_seed_gives_the_same_prompts() -> None:
    assert build(SOURCES, count, buckets=[1024], seed=3) == build(SOURCES, count, buckets=[1024], seed=3)
    assert build(SOURCES, count, buckets=[1024], seed=3) != build(SOURCES, count, buckets=[1024], seed=4)


def test_texts_too_short_for_a_bucket_leave_it_out() -> None:
    prompts = build(SOURCES, count, buckets=[1024, 65536], per_cell=1)
    assert {p.bucket for p in prompts} == {1024}
    with pytest.raises(UsageError, match="long enough"):
        build(SOURCES, count, buckets=[65536])


def test_a_repeated_request_is_made_once() -> None:
    prompts = build(SOURCES, count, buckets=[1024, 1024], kinds=["summarise", "summarise"], per_cell=2)
    assert [p.id for p in prompts] == ["summarise-1024-0", "summarise-1024-1"]


@pytest.mark.parametrize("bucket", [-5, 0, 10, 63])
def test_buckets_too_small_for_any_task_are_refused(bucket: int) -> None:
    with pytest.raises(UsageError, match=f"buckets are 1024, {bucket}; allowed"):
        build(SOURCES, count, buckets=[1024, bucket])
    with pytest.raises(UsageError, match="allowed"):
        from_conversations([], count, buckets=[bucket])


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_buckets_are_filled_or_left_out(kind: str) -> None:
    assert {p.bucket for p in build(SOURCES, count, buckets=[64, 1024], kinds=[kind])} <= {64, 1024}


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UsageError, match=r"poem.*multi-turn"):
        build(SOURCES, count, kinds=["poem"])


def test_files_come_back(tmp_path: Path) -> None:
    prompts = build(SOURCES, count, buckets=[1024])
    write(prompts, tmp_path / "set.jsonl")
    assert list(read(tmp_path / "set.jsonl")) == prompts
    assert [f.name for f in tmp_path.iterdir()] == ["set.jsonl"]


def test_separators_inside_a_text_come_back(tmp_path: Path) -> None:
    """They are valid in JSON, and written unchanged."""
    turns = ({"role": "user", "content": "one\u2028two\u0085three\x0cfour"},)
    prompt = Prompt("a", "multi-turn", 1024, turns, "", "here", "CC0")
    write([prompt, prompt], tmp_path / "set.jsonl")
    assert list(read(tmp_path / "set.jsonl")) == [prompt, prompt]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    write(build(SOURCES, count, buckets=[1024])[:1], file)
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(CheckpointError, match="line 2"):
        list(read(file))
    with pytest.raises(SourceError, match="longset"):
        list(read(tmp_path / "none.jsonl"))


def test_a_folder_gives_each_file_and_all_together(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, text in (("a/one.txt", "One."), ("two.md", "Two."), ("three.py", "x = 1"), ("four.bin", "no")):
        (tmp_path / name).write_text(text)
    found = read_folder(tmp_path)
    assert {(s.name, s.code) for s in found} == {
        ("a/one.txt", False),
        ("two.md", False),
        ("three.py", True),
        (f"{tmp_path.name} (2 files)", False),
    }
    assert "not read: 1 (four.bin)" in notes(tmp_path)[0]
    with pytest.raises(SourceError, match="is not a folder"):
        read_folder(tmp_path / "missing")


def test_conversations_go_into_the_bucket_they_fill() -> None:
    def row(language: str, toxic: bool, *lengths: int) -> dict[str, object]:
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": "x" * 4 * n} for i, n in enumerate(lengths)]
        key = "-".join(map(str, lengths))
        return {"conversation": turns, "language": language, "toxic": toxic, "conversation_hash": key}

    rows = [
        row("English", False, 500, 300, 100, 50),
        row("German", False, 900),
        row("English", True, 900),
        row("English", False, 10),
        row("English", False) | {"conversation": [{"role": "user", "content": None}]},
        row("English", False, 1900),
        row("English", False, 1000, 50, 9000),
    ]
    found = from_conversations(rows, count, buckets=[2048, 1024], per_bucket=5)
    assert [(p.bucket, p.id.rsplit("-", 1)[0], len(p.messages)) for p in found] == [
        (1024, "wildchat-1024-500-300-100", 3),
        (1024, "wildchat-1024-1000-50", 1),
        (2048, "wildchat-2048", 1),
    ]


def test_a_short_conversation_is_never_filed_under_a_long_bucket() -> None:
    """A text of 1,102 tokens never fills the bucket of 65,536, whatever the other buckets are."""
    turns = [{"role": "user", "content": "x" * 4 * 1094}]
    row = {"conversation": turns, "language": "English", "toxic": False, "conversation_hash": "a"}
    assert not from_conversations([row], count, buckets=[1024, 65536])
    assert [p.bucket for p in from_conversations([row], count, buckets=[2048, 65536])] == [2048]

"""Calibration sets: sources of texts, shares of sequences, texts that are too short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from justright.calibration.texts import _divide, build, notes, parse, read_texts
from justright.errors import CheckpointError, SourceError, UsageError
from tiny import tiny_tokenizer, tokenizer_with

WORDS = "the quick brown fox jumps over the lazy dog. "


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(1, 500))
def test_shares_become_whole_sequences(shares: list[float], total: int) -> None:
    counts = _divide(shares, total)
    assert sum(counts) == total
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - share / sum(shares) * total) < 1 + 1e-9


def test_files_folders_and_carried_sets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
    assert list(read_texts(str(tmp_path))) == ["one", "two", "three"]
    assert list(read_texts(str(tmp_path / "b.jsonl"))) == ["two", "three"]
    assert [s.name for s in parse(["zoo"])] == [
        f"zoo:{d}" for d in ("c", "dialogue", "fiction", "legal", "manuals", "problems", "python")
    ]
    assert sum(s.share for s in parse(["zoo=3"])) == pytest.approx(3)
    assert any("def " in text for text in read_texts("zoo:python"))


def test_data_files_of_every_name_are_data(tmp_path: Path) -> None:
    """Lines end at line feeds, and a JSON file is never read as raw text."""
    one, two = "first\u2028line\u0085 of one", "two"
    row = json.dumps({"text": one}, ensure_ascii=False)
    (tmp_path / "a.JSONL").write_text(f"\ufeff{row}\r\n\r\n{row}\n", encoding="utf-8", newline="")
    (tmp_path / "b.ndjson").write_text(f"{row}\n")
    (tmp_path / "c.json").write_text(json.dumps([{"text": one}, {"text": two}], indent=1))
    (tmp_path / "d.json").write_text(json.dumps({"text": two}))
    (tmp_path / "e.TXT").write_text("plain")
    expected = {
        "a.JSONL": [one, one],
        "b.ndjson": [one],
        "c.json": [one, two],
        "d.json": [two],
        "e.TXT": ["plain"],
    }
    for name, texts in expected.items():
        assert list(read_texts(str(tmp_path / name))) == texts
    assert list(read_texts(str(tmp_path))) == [text for texts in expected.values() for text in texts]
    (tmp_path / "f.json").write_text('{"dtype": "float32"}')
    with pytest.raises(CheckpointError, match=r"element 1 of .*f\.json is not a text"):
        list(read_texts(str(tmp_path / "f.json")))


def test_rows_of_the_hub_are_texts_or_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is not a text is never converted to one."""
    turns = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    rows = [{"text": "one", "chat": turns, "number": 3}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    assert list(read_texts("hub:a/b")) == ["one"]
    assert list(read_texts("hub:a/b:train:chat")) == [[{"role": "user", "content": "Hello"}]]
    with pytest.raises(CheckpointError, match="without a usable number; allowed: a text or"):
        list(read_texts("hub:a/b:train:number"))


def test_a_folder_reports_skipped_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert notes([str(tmp_path), "zoo=2", str(tmp_path / "a.txt")]) == []
    (tmp_path / "settings.json").write_text('{"dtype": "float32"}')
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"x")
    [note] = notes([f"{tmp_path}=2"])
    assert "not read: 2 (b.pdf, settings.json)" in note
    assert list(read_texts(str(tmp_path))) == ["one"]


def test_windows_are_spread_and_mixed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} {WORDS}" * 200)
    names = [f"{tmp_path / 'a.txt'}=3", str(tmp_path / "b.txt")]
    found = build(tiny_tokenizer(), names, 8, 32)
    assert found.ids.shape == (8, 32)
    assert list(found.sources.values()) == [6, 2]
    assert torch.equal(found.ids, build(tiny_tokenizer(), names, 8, 32).ids)
    assert found.fingerprint == build(tiny_tokenizer(), names, 8, 32).fingerprint
    assert found.fingerprint != build(tiny_tokenizer(), names, 8, 31).fingerprint


def test_one_window_of_each_stretch_by_the_seed(tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text(" ".join(map(str, range(4000))))
    whole = tiny_tokenizer()(file.read_text(), add_special_tokens=False)["input_ids"]
    rows = [whole[i : i + 16] for i in range(0, len(whole) - 15, 16)]
    drawn = []
    for seed in range(3):
        ids = build(tiny_tokenizer(), [str(file)], 10, 16, seed).ids.tolist()
        places = [rows.index(row) for row in ids]
        bounds = [i * len(rows) // 10 for i in range(11)]
        assert all(low <= place < high for low, place, high in zip(bounds, places, bounds[1:], strict=False))
        drawn.append(places)
    assert len(set(map(tuple, drawn))) == 3


def test_conversations_go_through_the_models_template(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "General greeting"}]
    file = tmp_path / "chats.jsonl"
    file.write_text((json.dumps({"messages": turns}) + "\n") * 50)
    assert next(iter(read_texts(str(file)))) == turns
    for template, expected in (
        (None, "Hello there\nGeneral greeting"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}",
         "<user>Hello there</s>\n<assistant>General greeting"),
    ):  # fmt: skip
        tokenizer = tokenizer_with(template)
        ids = [*tokenizer(expected, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        found = build(tokenizer, [str(file)], 1, len(ids) * 50).ids[0].tolist()
        assert found == ids * 50


def test_calls_of_tools_reach_the_template(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Add 1"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": turns}) + "\n")
    tokenizer = tokenizer_with(
        "{% for m in messages %}{{ m.role + ': ' + m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments.a + 1 }}{% endfor %};{% endfor %}"
    )
    expected = tokenizer("user: Add 1;assistant: add2;", add_special_tokens=False)["input_ids"]
    assert build(tokenizer, [str(file)], 1, len(expected)).ids[0].tolist() == expected


def test_a_file_whose_name_has_an_equals_sign(tmp_path: Path) -> None:
    file = tmp_path / "a=2"
    file.write_text(WORDS)
    assert parse([str(file)])[0].share == 1


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"words": 1}',
        "[]",
        '{"text": 3}',
        '{"messages": []}',
        '{"messages": "hello"}',
        '{"messages": [{"role": "banana", "content": "x"}]}',
        '{"messages": [{"role": "user"}]}',
    ],
)
def test_a_line_without_a_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n" + line)
    with pytest.raises(CheckpointError, match="line 2"):
        list(read_texts(str(tmp_path / "a.jsonl")))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "b.txt").write_bytes(bytes([200 + i % 50 for i in range(999)]))
    for name in ("a.txt", "b.txt"):
        with pytest.raises(CheckpointError, match="is not UTF-8 text"):
            list(read_texts(str(tmp_path / name)))


def test_what_is_missing_or_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no calibration texts"):
        list(read_texts(str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="has no calibration texts"):
        list(read_texts(str(tmp_path / "empty")))
    (tmp_path / "short.txt").write_text(WORDS)
    with pytest.raises(UsageError, match=r"short.txt have \d+ tokens, enough for 0 sequences of 4096"):
        build(tiny_tokenizer(), [str(tmp_path / "short.txt")], 1, 4096)
    with pytest.raises(UsageError, match="allowed: 1 or more"):
        build(tiny_tokenizer(), [str(tmp_path / "short.txt")], 0, 8)

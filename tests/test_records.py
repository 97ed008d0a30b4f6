"""Data files: how lines are parsed, what is ignored, and how errors name a bad line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from justright.errors import CheckpointError, SourceError
from justright.records import bare_text, conversation, read_rows, read_text

SEPARATORS = "\u2028\u2029\u0085\u000b\u000c\u001c\u001d\u001e\r"


def rows(file: Path) -> list[object]:
    return [row for _, row in read_rows(file)]


@given(st.lists(st.text(st.sampled_from('ab\n"\\' + SEPARATORS)), max_size=5), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_what_json_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], ascii_only: bool, crlf: bool
) -> None:
    file = tmp_path_factory.mktemp("rows") / "a.jsonl"
    end = "\r\n" if crlf else "\n"
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    file.write_bytes(("\ufeff" + f"{end}{end}".join(lines) + end).encode())
    assert rows(file) == [{"text": text} for text in texts]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.JSONL", '{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ("a.ndjson", '{"a": 1}\n\n  \n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("a.json", '[{"a": 1},\n {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ("a.json", '{\n "a": 1\n}', [{"a": 1}]),
        ("a.JSON", '\ufeff{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("a.jsonl", "", []),
    ],
)
def test_files_are_what_they_are_called(
    tmp_path: Path, name: str, content: str, expected: list[object]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert rows(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"line 3 of .*a\.jsonl is not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"line 2 of .*a\.jsonl is not UTF-8"),
        ("a.jsonl", b'{"a": "\\ud83d"}\n', r"line 1 of .* has half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, r"line 1 of .* is not JSON"),
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a\.json is not JSON.*line 2"),
        ("a.json", b'{"a": 1} and more', r"line 1 of .*a\.json is not JSON"),
        ("a.json", b"", r"a\.json is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        rows(tmp_path / name)


def test_a_whole_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"\\ud83d\\ude00"\n')
    assert rows(tmp_path / "a.jsonl") == ["\U0001f600"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for read in (rows, read_text):
        with pytest.raises(SourceError, match="cannot be read"):
            read(tmp_path)  # a folder


def test_plain_text_loses_its_mark_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\xc2\x85")
    assert read_text(tmp_path / "a.txt") == "one\ntwo\nthree\x85"


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def test_conversations_as_the_openai_client_writes_them() -> None:
    found = conversation(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1 + 2?"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
            {"role": "tool", "content": "3", "tool_call_id": "1"},
            {"role": "assistant", "content": "3", "tool_calls": None},
        ]
    )
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert found == [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "assistant", "content": "3"},
    ]
    lines = bare_text(found).split("\n")
    assert [lines[0], *lines[2:]] == ["What is 1 + 2?", "3", "3"]
    assert json.loads(lines[1]) == [call]


@pytest.mark.parametrize(
    "value",
    [
        [],
        "hello",
        [{"role": "banana", "content": "x"}],
        [{"role": "user"}],
        [{"role": "assistant", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": 3}],
        [3],
        [{"role": ["user"], "content": "x"}],
    ],
)
def test_what_is_no_conversation(value: object) -> None:
    assert conversation(value) is None

"""Long prompts by length bucket and kind of task, built from any texts, for benchmarks of speculative decoding.

After LongSpecBench (arXiv:2510.07535: 200 prompts of 4K to 64K tokens from WildChat): a file of JSON lines, a builder
for local texts, and one for WildChat's conversations. Prompts are conversations, not tokens, so one file serves every
model; buckets count the tokens of the tokenizer that the file was built with.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from justright.bench.tasks import Frame, user
from justright.errors import CheckpointError, SourceError, UsageError
from justright.files import write_whole
from justright.records import conversation, files_below, read_rows, read_text, skipped_note

BUCKETS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
CODE_SUFFIXES = (".py", ".c", ".h", ".js", ".ts", ".go", ".rs", ".java", ".cpp", ".hpp")
TEXT_SUFFIXES = (".txt", ".md", ".rst", *CODE_SUFFIXES)
LEAST_BUCKET = 64
_LEAST_FILL = 0.9
_TURNS = 4

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class SourceText:
    """A text to build prompts from.

    Attributes:
        name: for the prompts' ``source``.
        text: serves the buckets that are not longer than it.
        licence: of the text.
        code: whether it is a program.
    """

    name: str
    text: str
    licence: str
    code: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """One long prompt.

    Attributes:
        id: unique in its file.
        kind: one of `KINDS`.
        bucket: maximum number of tokens; the prompt has at least nine tenths of it, from WildChat more than half.
        messages: the conversation, which ends with a user turn; role ``text`` for a plain text to continue.
        steering: first words of the assistant's turn; "" for none.
        source: of the text.
        licence: of the text.
    """

    id: str
    kind: str
    bucket: int
    messages: tuple[Mapping[str, str], ...]
    steering: str
    source: str
    licence: str


def _summarise(text: str, _: random.Random) -> Frame:
    return Frame([user(f"Here is a text.\n\n{text}\n\nSummarise it in one paragraph.")])


def _quote(text: str, rng: random.Random) -> Frame | None:
    """Request a passage in the middle by its first words, which occur only once."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    places = list(range(len(sentences) // 10, max(1, 9 * len(sentences) // 10)))
    rng.shuffle(places)
    for place in places[:50]:
        words = sentences[place].split()
        start = " ".join(words[:8])
        if len(words) >= 10 and " ".join(text.split()).count(start) == 1:
            ask = (
                f'Here is a text.\n\n{text}\n\nFind the passage that begins with "{start}". Quote it and the five '
                "sentences behind it word for word, then say in one sentence what it is about."
            )
            return Frame([user(ask)], start)
    return None


def _edit(text: str, _: random.Random) -> Frame | None:
    """Request the whole program with its most frequent long name changed."""
    names = Counter(re.findall(r"\b[a-z_][a-z0-9_]{5,}\b", text))
    found = next(((name, count) for name, count in names.most_common(40) if "_" in name), None)
    if found is None or found[1] < 2:
        return None
    name = found[0]
    ask = (
        f"Here is a program.\n\n```\n{text}\n```\n\nWrite out the whole program again, with `{name}` renamed to "
        f"`{name}_2`."
    )
    return Frame([user(ask)], "Here is the whole program:\n\n```\n" + " ".join(text.split(" ")[:4]))


def _multi_turn(text: str, _: random.Random) -> Frame:
    """A user gives a text piece by piece with a question about each, and finally requests all answers again."""
    pieces = _pieces(text, _TURNS)
    messages: list[dict[str, str]] = []
    first_sentences = []
    for number, piece in enumerate(pieces, start=1):
        sentence = re.split(r"(?<=[.!?])\s+", piece.strip())[0][:300]
        first_sentences.append(sentence)
        messages.append(user(f"Part {number} of my text:\n\n{piece}\n\nWhat is its first sentence?"))
        messages.append(
            {"role": "assistant", "content": f"The first sentence of part {number} is: {sentence}"}
        )
    messages.append(user("List the first sentences of all parts again, one a line, word for word."))
    return Frame(messages, f"The first sentence of part 1 is: {first_sentences[0][:40]}")


def _continue(text: str, _: random.Random) -> Frame:
    return Frame([{"role": "text", "content": text}])


_KINDS: dict[str, Callable[[str, random.Random], Frame | None]] = {
    "multi-turn": _multi_turn,
    "summarise": _summarise,
    "quote-and-answer": _quote,
    "edit-code": _edit,
    "continue": _continue,
}
KINDS: tuple[str, ...] = tuple(_KINDS)


def build(
    sources: Sequence[SourceText],
    count: CountTokens,
    *,
    buckets: Sequence[int] = BUCKETS,
    kinds: Sequence[str] = KINDS,
    per_cell: int = 2,
    seed: int = 0,
) -> list[Prompt]:
    """Build prompts for every kind and bucket that the texts are long enough for.

    Args:
        sources: the texts; programs serve ``edit-code``, others the rest, and ``continue`` takes both.
        count: counts the tokens of a text.
        buckets: maximum tokens of a prompt.
        kinds: of `KINDS`.
        per_cell: prompts per kind and bucket, from different places.
        seed: of the places.

    Raises:
        UsageError: an unknown kind, a bucket that is too small, or no text that is long enough.
    """
    _check_buckets(buckets)
    unknown = [kind for kind in kinds if kind not in _KINDS]
    if unknown:
        raise UsageError(f"no kind is called {', '.join(unknown)}; allowed: {', '.join(KINDS)}")
    prompts = []
    for kind in dict.fromkeys(kinds):
        fitting = [s for s in sources if kind == "continue" or s.code == (kind == "edit-code")]
        for bucket in dict.fromkeys(buckets):
            rng = random.Random(f"{seed} {kind} {bucket}")
            for number in range(per_cell):
                made = _one(kind, bucket, fitting, count, rng)
                if made is not None:
                    frame, source = made
                    prompts.append(
                        Prompt(
                            f"{kind}-{bucket}-{number}",
                            *(kind, bucket, tuple(frame.messages), frame.steering),
                            *(source.name, source.licence),
                        )
                    )
    if not prompts:
        raise UsageError("no text is long enough for any bucket; add texts, or give shorter --buckets")
    return prompts


def _check_buckets(buckets: Sequence[int]) -> None:
    if not buckets or min(buckets) < LEAST_BUCKET:
        given = ", ".join(map(str, buckets)) or "none"
        raise UsageError(f"the buckets are {given}; allowed: one or more, of at least {LEAST_BUCKET} tokens")


def _one(
    kind: str, bucket: int, sources: Sequence[SourceText], count: CountTokens, rng: random.Random
) -> tuple[Frame, SourceText] | None:
    """A prompt from a random place of a random source, with nine tenths of ``bucket`` to ``bucket`` tokens."""
    for source in rng.sample(list(sources), len(sources)):
        paragraphs = [m.end() for m in re.finditer(r"\n\s*\n", source.text)] or [0]
        for start in [rng.choice(paragraphs), 0]:
            body = source.text[start:]
            characters = bucket * 4
            for _ in range(6):
                if not 0 < characters <= len(body) * 1.5:
                    break
                frame = _KINDS[kind](body[:characters], random.Random(bucket))
                if frame is None:
                    break
                size = count("\n".join(m["content"] for m in frame.messages) + frame.steering)
                size += 8 * len(frame.messages)  # tokens of the chat template per turn
                if _LEAST_FILL * bucket <= size <= bucket:
                    return frame, source
                characters = int(characters * 0.95 * bucket / size)
    return None


def _pieces(text: str, number: int) -> list[str]:
    size = -(-len(text) // number)
    return [text[begin : begin + size] for begin in range(0, len(text), size)]


def from_conversations(
    rows: Iterable[Mapping[str, Any]],
    count: CountTokens,
    *,
    buckets: Sequence[int] = BUCKETS,
    per_bucket: int = 20,
) -> list[Prompt]:
    """Build prompts from WildChat's rows (allenai/WildChat-4.8M): English, not toxic, up to a user turn.

    Args:
        rows: with ``conversation`` (a list of turns ``role``, ``content``), ``language``, ``toxic`` and
            ``conversation_hash``; read until every bucket is full.
        count: counts the tokens of a text.
        buckets: maximum tokens of a prompt; a prompt has more than half of it.
        per_bucket: prompts per bucket.

    Raises:
        UsageError: no bucket, or one that is too small.
    """
    _check_buckets(buckets)
    found: dict[int, list[Prompt]] = {bucket: [] for bucket in sorted(buckets)}
    for row in rows:
        if row.get("language") != "English" or row.get("toxic"):
            continue
        plain = [{"role": t["role"], "content": t["content"]} for t in row["conversation"]]
        turns = conversation(plain) or []
        for end in range(len(turns), 0, -1):
            if turns[end - 1]["role"] != "user":
                continue
            size = sum(count(turn["content"]) + 8 for turn in turns[:end])
            bucket = next((b for b in found if size <= b), None)
            if bucket is not None and size > bucket // 2 and len(found[bucket]) < per_bucket:
                name = str(row.get("conversation_hash", len(found[bucket])))
                label, said = f"wildchat-{bucket}-{name}", tuple(turns[:end])
                found[bucket].append(Prompt(label, "multi-turn", bucket, said, "", "WildChat", "ODC-BY"))
                break
        if all(len(prompts) >= per_bucket for prompts in found.values()):
            break
    return [prompt for prompts in found.values() for prompt in prompts]


def read_folder(folder: Path) -> list[SourceText]:
    """The texts below a folder: each file alone, all programs joined, and all other texts joined.

    Raises:
        SourceError: no such folder, or no text in it.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; give one with texts ({', '.join(TEXT_SUFFIXES)})")
    texts = [(file, read_text(file)) for file in files_below(folder, TEXT_SUFFIXES)[0]]
    found = [
        SourceText(str(f.relative_to(folder)), text, "unknown", f.suffix.lower() in CODE_SUFFIXES)
        for f, text in texts
    ]
    for code in (True, False):
        same = [source for source in found if source.code == code]
        if len(same) > 1:
            joined = "\n\n".join(source.text for source in same)
            found.append(SourceText(f"{folder.name} ({len(same)} files)", joined, "unknown", code))
    if not found:
        raise SourceError(f"{folder} has no texts; allowed endings: {', '.join(TEXT_SUFFIXES)}")
    return found


def notes(folder: Path) -> list[str]:
    """A note on files that `read_folder` does not read."""
    skipped = files_below(folder, TEXT_SUFFIXES)[1]
    return [skipped_note(folder, skipped, TEXT_SUFFIXES)] if skipped else []


def write(prompts: Iterable[Prompt], file: Path) -> None:
    """Write a file of JSON lines, whole or not at all."""
    write_whole(file, "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in prompts))


def read(file: Path) -> Iterator[Prompt]:
    """Read a file of `write`.

    Raises:
        SourceError: no such file.
        CheckpointError: a line is no prompt.
    """
    if not file.is_file():
        raise SourceError(f"{file} does not exist; make it with `justright bench longset`")
    for where, row in read_rows(file):
        try:
            messages = tuple({"role": m["role"], "content": m["content"]} for m in row["messages"])
            if not messages or not all(isinstance(text, str) for m in messages for text in m.values()):
                raise ValueError("messages without a role or a text")
            yield Prompt(**{**row, "messages": messages})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{where} is not a long prompt: {error}") from error

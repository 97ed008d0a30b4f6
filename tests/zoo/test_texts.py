"""Texts: archives are checked and never executed; blocks are whole, and on one side of the split only."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from justright_zoo.recipes.texts import DOMAINS, SPLITS, Domain, Source, _cut, _split_of, blocks, fetch


def archive(folder: Path, files: dict[str, str]) -> Source:
    """A tar.gz with ``files``, and the source that describes it (already in ``folder``)."""
    path = folder / "texts.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            data = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Source("https://example.invalid/texts.tar.gz", digest, "public domain", "texts")


def test_blocks_come_from_matching_files_in_order(tmp_path: Path) -> None:
    paragraph = "Some words of a paragraph that is long enough to matter, number {}. " * 4
    text = "\n\n".join(paragraph.format(*[i] * 4) for i in range(200))
    source = archive(tmp_path, {"a/doc/one.txt": text, "a/doc/two.bin": "no", "a/other.txt": "no"})
    found = blocks(Domain("x", (source,), r"a/doc/.*\.txt"), tmp_path)
    joined = [block for split in SPLITS for block in found[split]]
    assert sum(map(len, joined)) > len(text) * 0.98
    assert len(joined) == len(set(joined))
    for split in SPLITS:
        assert all(_split_of(block) == split for block in found[split])


def test_a_changed_archive_is_noticed(tmp_path: Path) -> None:
    source = archive(tmp_path, {"a.txt": "text"})
    (tmp_path / source.filename).write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(source, tmp_path)


@given(st.lists(st.text("ab \n", max_size=300), max_size=30))
def test_no_long_paragraph_comes_twice(parts: list[str]) -> None:
    seen: set[bytes] = set()
    long = "word " * 60
    got = [*_cut("\n\n".join([*parts, long, long]), seen), *_cut(long * 20 + "\n\n" + long, seen)]
    assert (
        sum(block.split("\n\n").count(long) + block.split("\n\n").count(long.strip()) for block in got) <= 1
    )


def test_six_domains_with_licences() -> None:
    assert len({domain.name for domain in DOMAINS}) == 6
    assert all(source.licence and len(source.sha256) == 64 for domain in DOMAINS for source in domain.sources)

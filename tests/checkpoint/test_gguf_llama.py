"""Tokenizers of GGUF files against llama.cpp's own, token for token, on texts of many scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import gguf
import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gguf_helpers import write_gguf
from justright.checkpoint.gguf_file import GgufFile
from justright.checkpoint.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_of
from justright.checkpoint.packaged import MODELS, whole_file
from justright.errors import MissingExtraError

pytestmark = [
    pytest.mark.packaged,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="no llama.cpp here: pip install xllamacpp"),
]
SERVER = """
import sys
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.port, p.warmup = sys.argv[1], 512, 1, 0, False
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
TEXTS = (
    (
        "The quick brown fox doesn't jump over 13 lazy dogs; it's 3.14 metres, isn't it? I'LL SAY SO, WE'RE D"
        "ONE."
    ),
    (
        "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0421\u044a\u0435\u0448\u044c \u0435"
        "\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0444\u0440\u0430\u043d"
        "\u0446\u0443\u0437\u0441\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a, 2025 \u0433\u043e\u0434."
    ),
    (
        "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u6f22\u5b57\u3068\u304b\u306a\u3002\u4e2d"
        "\u6587\u6587\u672c\uff0c123\u4e2a\u5b57\u7b26\u3002\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8"
    ),
    (
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663\u060c "
        "\u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f"
    ),
    (
        "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5 \xbd \xb2 \u2167 "
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969"
    ),
    (
        "def f(x):\n    return {'a': [1, 22, 333, 4444]}\n\n\n\tx  =   f(\"y\")\r\n  # end /* */ <b>//</b>\n "
        "\n 7"
    ),
    (
        "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 na\xefve \xc9cole  \u2014 \u201cquoted\u201d"
        "\u2026 \xa0x $5 \u20ac6 a_b-c/d e@f.g #1!!! ..."
    ),
    "  leading, trailing  \n\n12\n\n a\n\n\nb \t ",
)
# Merges cross words, digits and lines, so that every difference of the rules of splitting shows.
CORPUS = [text for text in TEXTS for _ in range(2)] + [" ".join(TEXTS), "\n\n".join(TEXTS)]


@contextmanager
def llama(model: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-c", SERVER, str(model)]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with httpx.Client(base_url=process.stdout.readline().strip(), timeout=120) as client:
            yield client
        process.stdin.close()


def assert_same(model: Path, texts: Sequence[str] = TEXTS) -> None:
    ours = tokenizer_of(GgufFile.open(model))
    with llama(model) as client:
        for text in texts:
            asked = {"content": text, "add_special": True, "parse_special": True}
            expected = client.post("/tokenize", json=asked).raise_for_status().json()["tokens"]
            found = ours.encode(text).ids
            assert [ours.id_to_token(i) for i in found] == [ours.id_to_token(i) for i in expected], text


def merged(corpus: list[str], byte_level: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a BPE trained on whole texts."""
    trained = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if byte_level:
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        trained.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    trained.train_from_iterator(corpus, trainer)
    found = trained.get_vocab()
    merges = json.loads(trained.to_str())["model"]["merges"]
    return sorted(found, key=found.__getitem__), [(a, b) for a, b in merges]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_rules_of_splitting(pre: str, tmp_path: Path) -> None:
    tokens, merges = merged(CORPUS, byte_level=True)
    names = ["<|start|>", "<|end|>", *tokens]

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(names)
        writer.add_token_types([3, 3] + [1] * len(tokens))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)

    texts = list(TEXTS)
    if pre == "tekken":  # llama.cpp's pattern leaves out the original's combining marks (\p{M})
        texts = [text for text in texts if not any(unicodedata.category(c).startswith("M") for c in text)]
    assert_same(write_gguf(tmp_path / "m.gguf", tokens=write, vocab_size=len(names)), texts)


@pytest.mark.parametrize("prefix", [True, False, None])
def test_sentencepiece(prefix: bool | None, tmp_path: Path) -> None:
    tokens, _ = merged([text.replace(" ", "\u2581") for text in CORPUS], byte_level=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(special + tokens)
        writer.add_token_scores([0.0] * len(special) + [-float(rank) for rank in range(len(tokens))])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(tokens))
        for name, token in (("unk", 0), ("bos", 1), ("eos", 2)):
            getattr(writer, f"add_{name}_token_id")(token)
        if prefix is not None:
            writer.add_add_space_prefix(prefix)

    assert_same(write_gguf(tmp_path / "m.gguf", tokens=write, vocab_size=len(special) + len(tokens)))


@pytest.mark.parametrize("name", MODELS)
def test_packaged_models(name: str) -> None:
    try:
        model = whole_file(MODELS[name])
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert_same(model)

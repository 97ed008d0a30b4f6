"""A GGUF file's tokenizer as a ``tokenizer.json``.

The header holds the vocabulary, the merges or scores, and the *name* of the rule that splits text before merges apply.
`PRE_TOKENIZERS` has the rules that are compared with llama.cpp's, token for token (``tests/checkpoint/
test_gguf_llama.py``). The rest follows the models' original tokenizers on the Hugging Face hub.

Source: src/llama-vocab.cpp of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from justright.checkpoint.format import damaged
from justright.checkpoint.gguf_family import special_ids
from justright.checkpoint.gguf_file import GgufFile, Strings
from justright.errors import UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"  # sentencepiece's sign for a space

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is split before the merges.

    Attributes:
        pattern: Regular expression of the pieces.
        digits: Whether each digit is split off first.
        whole: Whether a piece that is a token is taken whole, whatever the merges.
        bos: Whether a text begins with the start token, where the header does not say.
        nfc: Whether the original tokenizer composes characters first (NFC), which llama.cpp does not.
    """

    pattern: str
    digits: bool = False
    whole: bool = False
    bos: bool = False
    nfc: bool = False


_DIGITS = PreTokenizer(_GPT2, digits=True)
_QWEN2 = PreTokenizer(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), nfc=True)
_LLAMA_BPE = PreTokenizer(_LLAMA3, whole=True, bos=True)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(_GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _DIGITS),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA_BPE),
    "tekken": PreTokenizer(_TEKKEN, whole=True, bos=True),
}
"""By ``tokenizer.ggml.pre``."""


def unknown_split(file: GgufFile) -> str | None:
    """A sentence about a rule of splitting text that is not in `PRE_TOKENIZERS`; None if it is."""
    name = file.text("tokenizer.ggml.pre")
    if file.text("tokenizer.ggml.model") != "gpt2" or name in PRE_TOKENIZERS:
        return None
    return (
        f"{file.path} splits text by the rule {name or '(none)'!r}, which justright does not know: it is split as by "
        "GPT-2, and some tokens may differ from those of training"
    )


def tokenizer_of(file: GgufFile) -> Tokenizer:
    """The tokenizer that a header describes.

    Raises:
        UnsupportedModelError: Its kind is neither byte-level BPE ("gpt2") nor sentencepiece's BPE ("llama").
        CheckpointError: Its vocabulary or merges are missing or contradict each other.
    """
    model = file.text("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"the tokenizer of {file.path} is {model!r}; allowed: 'gpt2' and 'llama'. Give the model's safetensors "
            "checkpoint instead"
        )
    tokens = list(_array(file, "tokens", Strings))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise damaged(file.path, f"{len(tokens) - len(vocabulary)} tokens of its vocabulary appear twice")
    try:
        made = _byte_level(file, vocabulary) if model == "gpt2" else _sentencepiece(file, tokens, vocabulary)
    except Exception as error:  # the library raises its own, for merges of unknown tokens
        raise damaged(file.path, f"its vocabulary and merges make no tokenizer ({error})") from error
    _add_tokens(made, file, tokens)
    _add_start_and_end(made, file, tokens, model)
    return made


def _byte_level(file: GgufFile, vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    rule = PRE_TOKENIZERS.get(file.text("tokenizer.ggml.pre") or "", PRE_TOKENIZERS["gpt-2"])
    merges = [
        (first, second) for first, _, second in (m.partition(" ") for m in _array(file, "merges", Strings))
    ]
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule.whole))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rule.digits else []
    steps += [
        pre_tokenizers.Split(Regex(rule.pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rule.nfc:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(file: GgufFile, tokens: list[str], vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    gemma = str(file.text("general.architecture")).startswith("gemma")
    if gemma:  # its files spell tokens of several spaces with spaces
        tokens = [_SPACE * len(token) if token.strip(" ") == "" else token for token in tokens]
        vocabulary = {token: index for index, token in enumerate(tokens)}
    # Gemma's merges are in the order of the vocabulary, others in that of the scores.
    scores = [-index for index in range(len(tokens))] if gemma else _array(file, "scores", tuple)
    if len(scores) != len(tokens):
        raise damaged(file.path, f"it has {len(scores)} scores for {len(tokens)} tokens")
    unknown = special_ids(file).get("unk")
    made = Tokenizer(
        models.BPE(
            vocabulary,
            list(_merges(tokens, vocabulary, scores)),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.values.get("tokenizer.ggml.add_space_prefix", not gemma)
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    return made


def _merges(
    tokens: Sequence[str], vocabulary: dict[str, int], scores: Sequence[float]
) -> Iterator[tuple[str, str]]:
    """The merges that lead to each token, best score first: all its splits into two tokens."""
    for index in sorted(range(len(tokens)), key=lambda index: (-scores[index], index)):
        token = tokens[index]
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [
            (vocabulary[a], vocabulary[b], a, b) for a, b in splits if a in vocabulary and b in vocabulary
        ]
        for *_, first, second in sorted(known):
            yield first, second


def _add_tokens(made: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    """Tokens that are never split: control tokens (special) and those that the model's authors added."""
    from tokenizers import AddedToken

    kinds = _array(file, "token_type", tuple)
    if len(kinds) != len(tokens):
        raise damaged(file.path, f"it has {len(kinds)} token types for {len(tokens)} tokens")
    for kind, add in ((_CONTROL, made.add_special_tokens), (_USER_DEFINED, made.add_tokens)):
        found = [
            t for t, k in zip(tokens, kinds, strict=True) if k == kind and made.token_to_id(t) is not None
        ]
        add([AddedToken(token, normalized=False, special=kind == _CONTROL) for token in found])
    if made.get_vocab_size() != len(tokens):
        raise damaged(file.path, f"its {len(tokens)} tokens become {made.get_vocab_size()}")


def _add_start_and_end(made: Tokenizer, file: GgufFile, tokens: list[str], model: str) -> None:
    """Begin a text with the start token, and end it with the end token, where the header says so."""
    from tokenizers.processors import TemplateProcessing

    ids = special_ids(file)
    rule = PRE_TOKENIZERS.get(file.text("tokenizer.ggml.pre") or "")
    bos = model == "llama" or (rule is not None and rule.bos)
    wanted = [
        (name, tokens[ids[name]], ids[name])
        for name, default in (("bos", bos), ("eos", False))
        if name in ids and file.values.get(f"tokenizer.ggml.add_{name}_token", default)
    ]
    if wanted:
        start, end = ([token for n, token, _ in wanted if n == name] for name in ("bos", "eos"))
        made.post_processor = TemplateProcessing(
            single=[*start, "$A", *end],
            pair=[*start, "$A", *end, *start, "$B", *end],
            special_tokens=[(token, number) for _, token, number in wanted],
        )


def _array(file: GgufFile, name: str, kind: type) -> Any:
    found = file.values.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, kind):
        raise damaged(file.path, f"it has no tokenizer.ggml.{name}")
    return found

"""Sources of long prompts (the zoo's texts, WildChat on the hub), and the tokenizer that measures them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from justright.bench.longset import CountTokens, SourceText
from justright.checkpoint.sources import check_tokenizer_files, resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import MissingExtraError, SourceError, install_command

WILDCHAT = "allenai/WildChat-4.8M"


def counter(model: str) -> CountTokens:
    """A function that counts tokens with a model's tokenizer."""
    path = resolve(model).path
    check_tokenizer_files(path)
    tokenizer = load_tokenizer(path)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def zoo_texts() -> list[SourceText]:
    """The long texts of justright-zoo.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from justright_zoo.texts import long_texts
    except ImportError as error:
        raise MissingExtraError(
            "give --texts DIR, or install justright-zoo, which has texts; "
            f"{install_command(folder='packages/justright-zoo')}"
        ) from error
    return [SourceText(**entry) for entry in long_texts()]


def wildchat_rows() -> Iterator[Mapping[str, Any]]:
    """WildChat's conversations, downloaded one at a time.

    Raises:
        MissingExtraError: datasets is not installed.
        SourceError: the hub cannot be read.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(f"WildChat needs datasets; {install_command('train')}") from error
    try:
        yield from load_dataset(WILDCHAT, split="train", streaming=True)
    except Exception as error:  # datasets raises many types if the hub cannot be reached
        raise SourceError(f"{WILDCHAT} cannot be read from the hub ({error}); give --texts DIR") from error

"""Where long prompts come from: the zoo's texts, WildChat on the hub; and whose tokens measure them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from justright.bench.longset import CountTokens, SourceText
from justright.checkpoint.sources import check_tokenizer_files, resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import MissingExtraError, SourceError, install_command

WILDCHAT = "allenai/WildChat-4.8M"


def counter(model: str) -> CountTokens:
    """Counts tokens with a model's tokenizer."""
    path = resolve(model).path
    check_tokenizer_files(path)
    tokenizer = load_tokenizer(path)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def zoo_texts() -> list[SourceText]:
    """The long texts that justright-zoo carries.

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
    """WildChat's conversations, one at a time as they are downloaded.

    Raises:
        MissingExtraError: datasets is not installed.
        SourceError: the hub cannot be reached, or refuses.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(f"WildChat needs datasets; {install_command('train')}") from error
    try:
        yield from load_dataset(WILDCHAT, split="train", streaming=True)
    except Exception as error:  # datasets raises many types for a hub out of reach
        raise SourceError(f"{WILDCHAT} cannot be read from the hub ({error}); give --texts DIR") from error

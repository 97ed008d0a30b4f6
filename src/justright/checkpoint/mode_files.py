"""Read the chat template, end tokens and special tokens of a folder from all places that may hold them.

- Chat template: ``chat_template.jinja``, else ``chat_template`` in ``tokenizer_config.json`` (transformers 4), else
  ``chat_template.json`` (processors).
- End tokens: ``eos_token_id`` of ``generation_config.json``, else of ``config.json``, else of its ``text_config``.
- Special tokens: ``tokenizer_config.json``, overridden by ``special_tokens_map.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from justright.checkpoint.reader import read_json
from justright.errors import CheckpointError

TEMPLATE, TOKENIZER, PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
TEMPLATE_FILES = (TEMPLATE, TOKENIZER, PROCESSOR)
GENERATION, SPECIAL = "generation_config.json", "special_tokens_map.json"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_template(folder: Path) -> str | None:
    """The folder's default chat template; None if it has none.

    Raises:
        CheckpointError: A file cannot be read.
    """
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    for name in (TOKENIZER, PROCESSOR):
        found = read_object(folder / name).get("chat_template")
        if isinstance(found, list):  # [{"name": ..., "template": ...}]
            found = {one["name"]: one["template"] for one in found if isinstance(one, Mapping)}
        if isinstance(found, Mapping):
            found = found.get("default")
        if isinstance(found, str):
            return found
    return None


def read_end_tokens(folder: Path, config: Mapping[str, Any] | None = None) -> frozenset[int]:
    """The folder's end tokens; empty if no config names one (the tokenizer's then applies).

    Args:
        folder: A model's or an adapter's.
        config: Its ``config.json``, if it is read already.

    Raises:
        CheckpointError: A file cannot be read, or names a value that is not a token id.
    """
    config = read_object(folder / "config.json") if config is None else config
    nested = config.get("text_config")
    for one in (read_object(folder / GENERATION), config, nested if isinstance(nested, Mapping) else {}):
        found = one.get("eos_token_id")
        if found is None or found == []:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise CheckpointError(
                f"eos_token_id in {folder} is {found!r}; allowed: a token id or a list of them"
            )
        return frozenset(ids)
    return frozenset()


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The folder's special tokens by name (``eos_token``), as chat templates use them.

    Raises:
        CheckpointError: A file cannot be read.
    """
    both = {**read_object(folder / TOKENIZER), **read_object(folder / SPECIAL)}
    found = {name: both.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: one.get("content") if isinstance(one, Mapping) else one for name, one in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file is missing.

    Raises:
        CheckpointError: The file cannot be read, or does not hold a JSON object.
    """
    return read_json(file) if file.is_file() else {}

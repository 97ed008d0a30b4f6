"""A checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from justright.checkpoint.mode_files import read_template
from justright.errors import CheckpointError


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The checkpoint's fast tokenizer.

    Raises:
        CheckpointError: It cannot be read, or is a slow tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises many types for damaged tokenizer files
        raise CheckpointError(f"the tokenizer in {path} cannot be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{path} has no fast tokenizer (tokenizer.json): convert it with transformers")
    if tokenizer.chat_template is None:  # transformers does not read chat_template.json here
        tokenizer.chat_template = read_template(path)
    return tokenizer

"""The text and bytes of single tokens, for log-probabilities and traces."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""The letters that byte-level vocabularies use for bytes (GPT-2's table)."""


class TokenTexts:
    """Looks tokens up; a token that holds only some bytes of a character has bytes but no readable text.

    Args:
        tokenizer: byte-level, or with pieces that write a space as ``\u2581``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
        self._added = {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}

    def data(self, token_id: int) -> bytes:
        """Return the bytes of a token; empty for an id outside the vocabulary."""
        if token_id in self._added:
            return str(self._added[token_id]).encode()
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if self._byte_level:
            return bytes(_BYTES[letter] for letter in token if letter in _BYTES)
        if found := _BYTE.fullmatch(token):
            return bytes([int(found[1], 16)])
        return str(token).replace("\u2581", " ").encode()

    def text(self, token_id: int) -> str:
        """Return the text of a token, with U+FFFD for bytes that are not valid text by themselves."""
        return self.data(token_id).decode(errors="replace")

    def label(self, token_id: int) -> str:
        """Return the text of a token, or OpenAI's ``bytes:\\xe2\\x80`` form if it has none by itself."""
        data = self.data(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

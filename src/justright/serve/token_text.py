"""The text and bytes of single tokens, for log-probabilities and traces."""

from __future__ import annotations

import re
from functools import cache

from transformers import PreTrainedTokenizerFast

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


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
            return bytes(_byte_letters()[letter] for letter in token if letter in _byte_letters())
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


@cache
def _byte_letters() -> dict[str, int]:
    """Return the letters that byte-level vocabularies use for bytes (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(rest)}

"""What each token adds to the text, as bytes.

The decoders of nearly every language model work token by token: the text of a token depends on nothing but
the token and whether it is the first. That makes a table, and with the table decoding is joining bytes.
Bytes, not characters, because a token may hold a part of a UTF-8 character.

Tabulated are the decoders (by their `tokenizer.json` names) `ByteLevel` (GPT-2, Llama 3, Qwen), `Replace` +
`ByteFallback` + `Fuse` + `Strip` (Llama 2, Mistral, Gemma), `Metaspace` (T5), `WordPiece` (BERT), and none.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from tokenizers import Tokenizer

from pagoda.errors import InvalidArgumentError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# A piece of text that no decoder changes, put before a token to ask for that token's text inside a text.
_ANCHOR = "a"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("pagoda.replace_each_byte", _replace_each_byte)


class TokenBytes(dict[int, bytes]):
    """Token id -> the bytes it adds when it follows other text; entries are made on first use.

    Ids are [0, max_token_id]; another raises InvalidArgumentError. An id in the range without a token (the
    padding of a model's embedding matrix) adds nothing.

    utf8_errors: the codec error handler under which the joined bytes decode as `tokenizers` decodes them:
        "replace" gives one U+FFFD for each maximal ill-formed part (Unicode 16, section 3.9), as `ByteLevel`
        does; "pagoda.replace_each_byte" gives one for each ill-formed byte, as `ByteFallback` does
    """

    def __init__(self, tokenizer: Tokenizer, max_token_id: int) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._max_token_id = max_token_id
        steps = decoder_steps(tokenizer)
        kinds = [step["type"] for step in steps]
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._strips_first_space = "Strip" in kinds
        self.utf8_errors = "pagoda.replace_each_byte" if self._byte_fallback else "replace"

    def first(self, token_id: int) -> bytes:
        """The bytes of a token at the very start of a text, where some decoders drop a space."""
        following = self[token_id]
        token = self._tokenizer.id_to_token(token_id)
        if self._byte_level or token is None:
            return following
        if self._is_byte_token(token):
            return b"" if self._strips_first_space and following == b" " else following
        return self._decode([token]).encode()

    def __missing__(self, token_id: int) -> bytes:
        check_token_id(token_id, self._max_token_id)
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            piece = b""
        elif self._byte_level:
            piece = _byte_level_bytes(token)
        elif self._is_byte_token(token):
            piece = bytes([int(token[3:5], base=16)])
        else:
            piece = self._decode([_ANCHOR, token]).removeprefix(_ANCHOR).encode()
        self[token_id] = piece
        return piece

    def _is_byte_token(self, token: str) -> bool:
        return self._byte_fallback and _BYTE_TOKEN.fullmatch(token) is not None

    def _decode(self, tokens: list[str]) -> str:
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def check_token_id(token_id: int, max_token_id: int) -> None:
    """Raise InvalidArgumentError unless token_id is in [0, max_token_id]."""
    if not 0 <= token_id <= max_token_id:
        raise InvalidArgumentError(
            f"Token id {token_id} is out of range: this model's token ids are 0 to {max_token_id}.",
            reason="TOKEN_ID_OUT_OF_RANGE",
        )


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The `decoder` of a `tokenizer.json` as a flat list of steps, each a dict with a "type"; [] for none."""
    if tokenizer.decoder is None:
        return []
    step = json.loads(tokenizer.decoder.__getstate__())
    return list(step["decoders"]) if step["type"] == "Sequence" else [step]


def is_tabulated(tokenizer: Tokenizer) -> bool:
    """True if the tokenizer's decoder works token by token, so that `TokenBytes` reproduces it."""
    steps = decoder_steps(tokenizer)
    kinds = [step["type"] for step in steps]
    if kinds in ([], ["ByteLevel"], ["Metaspace"], ["WordPiece"]):
        return True
    if kinds and kinds[-1] == "Strip":
        strip, kinds = steps[-1], kinds[:-1]
        if (strip["content"], strip["start"], strip["stop"]) != (" ", 1, 0):
            return False
    while kinds and kinds[0] == "Replace":
        kinds = kinds[1:]
    return kinds == ["ByteFallback", "Fuse"]


def _byte_level_bytes(token: str) -> bytes:
    """The bytes a token spells in GPT-2's byte alphabet; a token with any other character is literal."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet of bytes: printable Latin-1 stands for itself, the other bytes follow from U+0100 on.

    Source: `bytes_to_unicode` in OpenAI's GPT-2 release.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + rank): byte for rank, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_alphabet()

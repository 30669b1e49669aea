"""Token ids to text while they are generated, one piece at a time.

Not `tokenizers.decoders.DecodeStream` (as of 0.23): it has no end, so the last incomplete character is
lost; it holds back ill-formed bytes for as long as they come; and it fails with "Invalid prefix
encountered" where a byte-fallback run turns ill-formed after a complete character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from pagoda.text.token_bytes import TokenBytes
from pagoda.text.tokenizer import TextTokenizer

# Tokens of context that decide how a decoder without a table joins the next one.
_CONTEXT_TOKENS = 6
# A UTF-8 character is at most 4 bytes, so at most 3 tokens can wait for its last.
_MAX_PENDING_TOKENS = 3


class IncrementalDetokenizer:
    """Text of one generated sequence; the pieces joined are the text of the whole.

    With `prompt_tail` empty, the joined pieces equal `tokenizer.decode(ids)`. With it, they are what `ids`
    add behind it: `decode(prompt_tail + ids)` without its beginning `decode(prompt_tail)`. The difference is
    the space that SentencePiece-style decoders drop at the start of a text and that a continuation must keep.
    It is enough that `prompt_tail` holds one token that is not skipped; a tail of skipped tokens (`<s>`)
    counts as none. Bytes of a character that the prompt leaves unfinished are not completed.

    A piece never ends inside a UTF-8 character: at most 3 bytes are held until the character is complete, or
    known to be ill-formed and then emitted as U+FFFD. Work and memory per token are constant.

    For the few decoders that do not work token by token (`BPEDecoder`, `CTC`; see `token_bytes`), a token is
    decoded behind the 6 before it, which is exact if its text depends on no more than those.

    skip_special_tokens: leave out `tokenizer.special_token_ids`
    prompt_tail: the ids before the generated ones, all or the last few; never emitted
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        skip_special_tokens: bool = True,
        prompt_tail: Sequence[int] = (),
    ) -> None:
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset[int]()
        context = self._kept(prompt_tail)
        self._text: _TabulatedText | _WindowedText
        if tokenizer.token_bytes is not None:
            self._text = _TabulatedText(tokenizer.token_bytes, started=bool(context))
        else:
            self._text = _WindowedText(tokenizer, context)

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next ids and return the text they complete, perhaps "".

        Raises InvalidArgumentError for an id outside [0, tokenizer.max_token_id].
        """
        return self._text.push(self._kept(token_ids))

    def finish(self) -> str:
        """End the text: bytes still waiting for the rest of their character come out as U+FFFD."""
        return self._text.finish()

    def _kept(self, token_ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id not in self._skipped]


class _TabulatedText:
    """Joins the tokens' bytes and decodes them as UTF-8 as far as they go."""

    def __init__(self, token_bytes: TokenBytes, started: bool) -> None:
        self._token_bytes = token_bytes
        self._started = started
        self._utf8 = codecs.getincrementaldecoder("utf-8")(token_bytes.utf8_errors)

    def push(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        pieces = [self._token_bytes[token_id] for token_id in token_ids]
        if not self._started:
            pieces[0] = self._token_bytes.first(token_ids[0])
            self._started = True
        return self._utf8.decode(b"".join(pieces))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowedText:
    """Decodes each token behind a few of its predecessors and emits what it adds."""

    def __init__(self, tokenizer: TextTokenizer, context: list[int]) -> None:
        self._tokenizer = tokenizer
        self._context = context[-_CONTEXT_TOKENS:]
        self._pending: list[int] = []

    def push(self, token_ids: list[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def finish(self) -> str:
        text = self._added()
        self._pending = []
        return text

    def _push_one(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._added()
        # U+FFFD at the end is a character that may still become complete, but only for so long.
        if text.endswith("\ufffd") and len(self._pending) <= _MAX_PENDING_TOKENS:
            return ""
        self._context = (self._context + self._pending)[-_CONTEXT_TOKENS:]
        self._pending = []
        return text

    def _added(self) -> str:
        """The text that the pending tokens add to the context's."""
        before = self._tokenizer.decode(self._context, skip_special_tokens=False)
        after = self._tokenizer.decode(self._context + self._pending, skip_special_tokens=False)
        return after[len(before) :]

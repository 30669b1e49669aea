"""Text to token ids and back, as a Hugging Face checkpoint folder says.

Knows the `tokenizers` library and the folder's files. Encodes as transformers' fast `AutoTokenizer` does
for a folder with a `tokenizer.json`: special tokens are placed by that file's post-processor, and
`add_bos_token` and `add_eos_token` of `tokenizer_config.json` are not consulted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pagoda.errors import InvalidArgumentError
from pagoda.text import checkpoint_files as files
from pagoda.text.token_bytes import TokenBytes, check_token_id, is_tabulated


class TextTokenizer:
    """One model's tokenizer; immutable once loaded, and safe to share between threads.

    vocab_size: tokens of the model itself, without added ones; `len()` counts those too
    max_token_id: the largest id that can be decoded. May exceed len() - 1: a model's embedding matrix is
        often padded (`vocab_size` in `config.json`), and an id from the padding decodes to nothing.
    special_token_ids: the ids that `decode(skip_special_tokens=True)` leaves out
    special_tokens: special tokens by name, the variables a chat template sees
    eos_token_ids: every id that ends a generation, from `generation_config.json`, `config.json` and
        `eos_token`
    chat_templates: Jinja sources by name; {} if the model has none
    model_max_length: the longest sequence the model was made for, in tokens; None if no file says
    token_bytes: what each token adds to a text, or None if the tokenizer's decoder does not work token by
        token
    """

    def __init__(
        self,
        backend: Tokenizer,
        *,
        tokenizer_config: files.Json,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        eos_token_ids: frozenset[int] = frozenset(),
        model_vocab_size: int = 0,
        model_max_length: int | None = None,
    ) -> None:
        # A tokenizer.json may ask for these, but neither belongs to text alone: a prompt is never cut
        # silently.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._tokenizer_config = tokenizer_config
        self.special_tokens = dict(special_tokens)
        self.chat_templates = dict(chat_templates)
        self.model_max_length = model_max_length
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=False)
        self.max_token_id: int = max([*backend.get_vocab().values(), model_vocab_size - 1])
        self.special_token_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.bos_token = self.special_tokens.get("bos_token")
        self.eos_token = self.special_tokens.get("eos_token")
        self.pad_token = self.special_tokens.get("pad_token")
        eos_token_id = None if self.eos_token is None else backend.token_to_id(self.eos_token)
        self.eos_token_ids = eos_token_ids | files.token_ids(eos_token_id)
        self.token_bytes = TokenBytes(backend, self.max_token_id) if is_tabulated(backend) else None

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Read a checkpoint folder; only its `tokenizer.json` is required.

        Raises FileNotFoundError or ValueError with a message that names the file at fault.
        """
        backend = files.read_tokenizer(folder / "tokenizer.json")
        tokenizer_config = files.read_json_object(folder / "tokenizer_config.json")
        generation_config = files.read_json_object(folder / "generation_config.json")
        model_config = files.read_json_object(folder / "config.json")
        # A multimodal model keeps its language model's settings one level down.
        text_config = model_config.get("text_config") or {}

        token_config = files.with_special_tokens_map(
            tokenizer_config, files.read_json_object(folder / "special_tokens_map.json")
        )
        special = files.special_tokens(token_config)
        backend.add_tokens(files.added_tokens(token_config, special))
        backend.encode_special_tokens = bool(tokenizer_config.get("split_special_tokens", False))
        return cls(
            backend,
            tokenizer_config=tokenizer_config,
            special_tokens={name: token.content for name, token in special.items()},
            chat_templates=files.chat_templates(folder, tokenizer_config),
            eos_token_ids=files.token_ids(
                generation_config.get("eos_token_id"),
                model_config.get("eos_token_id"),
                text_config.get("eos_token_id"),
            ),
            model_vocab_size=int(model_config.get("vocab_size") or text_config.get("vocab_size") or 0),
            model_max_length=_model_max_length(tokenizer_config, model_config, text_config),
        )

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        add_special_tokens: add what the model expects around a text (`<s>`, `[CLS]`); a text from a chat
            template has it already
        Raises InvalidArgumentError if the text is not valid Unicode (a lone surrogate).
        """
        _check_unicode(text)
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of each text, on as many threads as `tokenizers` uses."""
        for text in texts:
            _check_unicode(text)
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [list(encoding.ids) for encoding in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, the same that `IncrementalDetokenizer` streams.

        It is the text `tokenizers` gives, without transformers' `clean_up_tokenization_spaces`, except for
        one
        case: where byte-fallback tokens spell complete characters and then ill-formed bytes, the characters
        are kept. (`tokenizers` turns the whole run into U+FFFD, which a stream cannot know when it emits
        them.)

        Raises InvalidArgumentError for an id outside [0, max_token_id].
        """
        if self.token_bytes is None:
            for token_id in token_ids:
                check_token_id(token_id, self.max_token_id)
            return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        skipped = self.special_token_ids if skip_special_tokens else frozenset[int]()
        kept = [token_id for token_id in token_ids if token_id not in skipped]
        pieces = [self.token_bytes[token_id] for token_id in kept]
        if kept:
            pieces[0] = self.token_bytes.first(kept[0])
        return b"".join(pieces).decode("utf-8", errors=self.token_bytes.utf8_errors)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it (`Ġthe`, `▁the`); "" for an id without a token.

        Raises InvalidArgumentError for an id outside [0, max_token_id].
        """
        for token_id in token_ids:
            check_token_id(token_id, self.max_token_id)
        return [self._backend.id_to_token(token_id) or "" for token_id in token_ids]

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The Jinja source for a conversation with or without tools; None if the model has no default one."""
        if tools and "tool_use" in self.chat_templates:
            return self.chat_templates["tool_use"]
        return self.chat_templates.get("default")

    def info(self) -> files.Json:
        """`tokenizer_config.json` with tokens as plain strings, completed; what vLLM's
        `/get_tokenizer_info` gives.

        Always has `tokenizer_class`, `model_max_length` (may be None), and `chat_template` if the model has
        one.
        """
        config: files.Json = files.plain(self._tokenizer_config)
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        config["model_max_length"] = self.model_max_length
        template = self.chat_template()
        if template is not None:
            config["chat_template"] = template
        return config


def _model_max_length(tokenizer_config: files.Json, model_config: files.Json, text_config: files.Json) -> int | None:
    length = tokenizer_config.get("model_max_length")
    # transformers writes int(1e30) for "unknown".
    if isinstance(length, int | float) and length < 1e18:
        return int(length)
    length = model_config.get("max_position_embeddings") or text_config.get("max_position_embeddings")
    return None if length is None else int(length)


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"The text is not valid Unicode: character {error.start} is a lone surrogate "
            f"(U+{ord(text[error.start]):04X}). In JSON, write a character beyond U+FFFF as a pair of \\u escapes.",
            reason="INVALID_UNICODE",
        ) from error

"""The requests of a benchmark: what is asked, and how many tokens are wanted. Options are named as in `vllm bench`.

Random prompts are token ids, or words where a server takes text only. Nothing here needs a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from pagoda.errors import InvalidArgumentError
from pagoda.options import option

DATASETS = ("random", "prefix_repetition", "custom", "sharegpt")

# Of English prose, in most vocabularies; for want of a tokenizer.
_CHARS_PER_TOKEN = 4

# One token each, with the space before it, in most vocabularies.
_WORDS = (
    "the of and to in is was for that with on as by at from are this it be an or which but not have had were his her "
    "they one all there when who will more no if out so what up said about than into them can only other new some time "
    "these two may then do first any my now such like our over man me even most made after also did many before must "
    "through back years where much your way well down should because each just those people how too little state good "
    "very make world still own see men work long get here between both life being under never day same another know "
    "while last might us great old year off come since against go came right used take three"
).split()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request."""

    content: str | list[int]
    """Text, or token ids."""
    num_output_tokens: int
    """Most tokens to generate."""

    @property
    def text(self) -> str:
        """For servers that take no token ids; of ids, about as many words, the same for the same ids."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(_WORDS[token_id % len(_WORDS)] for token_id in self.content)


@dataclass(frozen=True)
class DatasetOptions:
    dataset_name: str = option("random", "Where the requests come from.", choices=DATASETS)
    dataset_path: Path | None = option(
        None,
        'JSONL file: for custom, lines of {"prompt": text or token ids, "output_tokens": number}; '
        'for sharegpt, lines (or one array) of {"conversations": [{"value": text}, ...]}.',
        metavar="FILE",
    )
    seed: int = option(0, "Seed of everything that is drawn.")
    num_prompts: int = option(1000, "Requests to send; a shorter file is begun again.")
    input_len: int | None = option(None, "The same as --random-input-len.")
    output_len: int | None = option(None, "Output tokens of every request, whatever the dataset says.")
    random_input_len: int = option(1024, "random: mean input tokens behind the prefix.")
    random_output_len: int = option(128, "random: mean output tokens.")
    random_range_ratio: float = option(
        0.0, "random: lengths are uniform between (1 - ratio) and (1 + ratio) times their means; in [0, 1)."
    )
    random_prefix_len: int = option(0, "random: tokens that all prompts begin with, before the input tokens.")
    prefix_repetition_prefix_len: int = option(256, "prefix_repetition: tokens of a prefix.")
    prefix_repetition_suffix_len: int = option(256, "prefix_repetition: tokens of each request's own.")
    prefix_repetition_num_prefixes: int = option(10, "prefix_repetition: distinct prefixes, used equally often.")
    prefix_repetition_output_len: int = option(128, "prefix_repetition: output tokens.")
    custom_output_len: int = option(256, "custom: output tokens; -1: as the file says.")
    sharegpt_output_len: int | None = option(
        None, "sharegpt: output tokens; if not given, a quarter of the characters of the file's own answer."
    )

    def check_dataset(self) -> None:
        for name in (
            "num_prompts",
            "random_input_len",
            "random_output_len",
            "prefix_repetition_num_prefixes",
            "prefix_repetition_suffix_len",
            "prefix_repetition_output_len",
        ):
            _at_least(name, getattr(self, name), 1)
        for name in ("input_len", "output_len", "sharegpt_output_len"):
            if (value := getattr(self, name)) is not None:
                _at_least(name, value, 1)
        for name in ("random_prefix_len", "prefix_repetition_prefix_len", "seed"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.random_range_ratio < 1:
            raise ValueError(f"random_range_ratio is {self.random_range_ratio}; it must be in [0, 1)")
        if self.custom_output_len < 1 and self.custom_output_len != -1:
            raise ValueError(f"custom_output_len is {self.custom_output_len}; it must be at least 1, or -1")
        if self.dataset_name in ("custom", "sharegpt") and self.dataset_path is None:
            raise ValueError(f"the dataset {self.dataset_name} needs dataset_path")


def make_prompts(options: DatasetOptions, vocab_size: int) -> list[Prompt]:
    """`num_prompts` requests; token ids are drawn below vocab_size. The same for the same options.

    Raises InvalidArgumentError for a file that is no such dataset, OSError for one that cannot be read.
    """
    if options.dataset_name == "random":
        return _random(options, vocab_size)
    if options.dataset_name == "prefix_repetition":
        return _prefix_repetition(options, vocab_size)
    assert options.dataset_path is not None
    read = _custom if options.dataset_name == "custom" else _sharegpt
    if not (prompts := read(options, options.dataset_path)):
        raise InvalidArgumentError(f"{options.dataset_path} has no prompts")
    return list(islice(cycle(prompts), options.num_prompts))


def random_prompts(seed: int, lengths: Sequence[int], num_output_tokens: int, vocab_size: int) -> list[Prompt]:
    """One per length, nothing shared."""
    rng = default_rng(seed)
    return [Prompt(_token_ids(rng, length, vocab_size), num_output_tokens) for length in lengths]


def _random(options: DatasetOptions, vocab_size: int) -> list[Prompt]:
    # A stream of random numbers per purpose: an option that changes one of them leaves the others alone.
    prefixes, inputs, outputs, contents = map(default_rng, SeedSequence(options.seed).spawn(4))
    prefix = _token_ids(prefixes, options.random_prefix_len, vocab_size)
    num_inputs = _lengths(inputs, options.input_len or options.random_input_len, options)
    num_outputs = _lengths(outputs, options.output_len or options.random_output_len, options)
    return [
        Prompt(prefix + _token_ids(contents, num_input, vocab_size), num_output)
        for num_input, num_output in zip(num_inputs.tolist(), num_outputs.tolist(), strict=True)
    ]


def _prefix_repetition(options: DatasetOptions, vocab_size: int) -> list[Prompt]:
    rng = default_rng(options.seed)
    num_prefixes = options.prefix_repetition_num_prefixes
    prefixes = [_token_ids(rng, options.prefix_repetition_prefix_len, vocab_size) for _ in range(num_prefixes)]
    num_output = options.output_len or options.prefix_repetition_output_len
    return [
        Prompt(
            prefixes[number % num_prefixes] + _token_ids(rng, options.prefix_repetition_suffix_len, vocab_size),
            num_output,
        )
        for number in rng.permutation(options.num_prompts).tolist()
    ]


class _Line(msgspec.Struct):
    prompt: str | list[int]
    output_tokens: int | None = None


class _Turn(msgspec.Struct):
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[_Turn]


def _custom(options: DatasetOptions, path: Path) -> list[Prompt]:
    prompts = []
    for number, text in _lines(path):
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError as error:
            raise InvalidArgumentError(f"{path}, line {number}: {error}") from error
        num_output = options.output_len or (None if options.custom_output_len == -1 else options.custom_output_len)
        if num_output is None and (num_output := line.output_tokens) is None:
            raise InvalidArgumentError(f"{path}, line {number}: no output_tokens, and custom_output_len is -1")
        prompts.append(Prompt(line.prompt, num_output))
    return prompts


def _sharegpt(options: DatasetOptions, path: Path) -> list[Prompt]:
    """The first turn of each conversation that has an answer."""
    try:
        if path.read_bytes().lstrip()[:1] == b"[":
            conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
        else:
            conversations = [msgspec.json.decode(text, type=_Conversation) for _, text in _lines(path)]
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error
    given = options.output_len or options.sharegpt_output_len
    return [
        Prompt(turns[0].value, given or max(1, len(turns[1].value) // _CHARS_PER_TOKEN))
        for turns in (each.conversations for each in conversations)
        if len(turns) >= 2 and turns[0].value
    ]


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """(number, text) of those that are not empty."""
    return [(number, line) for number, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()]


def _token_ids(rng: Generator, count: int, vocab_size: int) -> list[int]:
    token_ids: list[int] = rng.integers(vocab_size, size=count).tolist()
    return token_ids


def _lengths(rng: Generator, mean: int, options: DatasetOptions) -> NDArray[np.int64]:
    """[num_prompts] uniform, at least 1"""
    low = max(1, int(np.floor(mean * (1 - options.random_range_ratio))))
    high = int(np.ceil(mean * (1 + options.random_range_ratio)))
    return rng.integers(low, high, size=options.num_prompts, endpoint=True)


def _at_least(name: str, value: int, bound: int) -> None:
    if value < bound:
        raise ValueError(f"{name} is {value}; it must be at least {bound}")

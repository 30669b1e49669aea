"""A trace: which requests arrive when, and what they say. Read from and written to JSONL, one request per line.

    {"arrival_s": 0.25, "num_prompt_tokens": 700, "num_output_tokens": 64, "client_id": "a", "prefix_id": 3,
     "num_prefix_tokens": 512}

The fields are those of `TraceRequest`. Nobody needs the text: tokens are a function of a stream and a position. So the
prompts of one prefix begin alike, and the next turn of a session repeats the prompt and the answer of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pagoda.errors import InvalidArgumentError

Count = Annotated[int, Meta(ge=0)]
PositiveCount = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]


class TraceRequest(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One request. Requests are numbered from 0 in the order of the trace."""

    arrival_s: Seconds
    """Seconds after the start, or, with `follows`, after the end of that request."""
    num_prompt_tokens: PositiveCount
    num_output_tokens: PositiveCount
    client_id: str = ""
    priority: int = 0
    """Lower values run first."""
    prefix_id: Count | None = None
    """Requests with the same one share their first num_prefix_tokens tokens."""
    num_prefix_tokens: Count = 0
    session_id: Count | None = None
    """Requests with the same one have the same token at the same position behind the prefix; None: nobody else has."""
    follows: Count | None = None
    """Number of an earlier request, after whose end this one is sent."""
    timeout_s: Annotated[float, Meta(gt=0)] | None = None
    token_ids: tuple[Count, ...] | None = None
    """The prompt itself, where it is known."""

    def __post_init__(self) -> None:
        if self.token_ids is not None and len(self.token_ids) != self.num_prompt_tokens:
            raise ValueError(f"{len(self.token_ids)} token_ids, but num_prompt_tokens is {self.num_prompt_tokens}")
        if self.num_prefix_tokens > (self.num_prompt_tokens if self.prefix_id is not None else 0):
            raise ValueError("num_prefix_tokens is more than the prompt, or there is no prefix_id")

    def stream(self, number: int) -> int:
        """Names the tokens behind the prefix. number: the request's own."""
        return 3 * number + 1 if self.session_id is None else 3 * self.session_id + 2

    def routing_stream(self, number: int) -> int:
        """Names what the request has in common with others: its prefix, or else its session."""
        return self.stream(number) if self.prefix_id is None else 3 * self.prefix_id

    def prompt(self, number: int, vocab_size: int) -> NDArray[np.uint32]:
        """[num_prompt_tokens]"""
        if self.token_ids is not None:
            return np.array(self.token_ids, np.uint32)
        streams = np.full(self.num_prompt_tokens, self.stream(number), np.uint64)
        if self.prefix_id is not None:
            streams[: self.num_prefix_tokens] = 3 * self.prefix_id
        return tokens_at(streams, np.arange(self.num_prompt_tokens), vocab_size)


def tokens_at(streams: NDArray[np.uint64], positions: NDArray[np.int64], vocab_size: int) -> NDArray[np.uint32]:
    """The tokens of streams at positions, parallel: the finalizer of SplitMix64 (Steele et al. 2014)."""
    mixed = streams * np.uint64(0x9E3779B97F4A7C15) + positions.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    token_ids: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(31))) % np.uint64(vocab_size)
    return token_ids.astype(np.uint32)


def read_trace(path: Path) -> list[TraceRequest]:
    """Raises InvalidArgumentError, naming the line, for what is no trace; OSError for a file that cannot be read."""
    decoder = msgspec.json.Decoder(TraceRequest)
    requests: list[TraceRequest] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                request = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise InvalidArgumentError(f"{path}, line {number}: {error}") from error
            if request.follows is not None and request.follows >= len(requests):
                raise InvalidArgumentError(
                    f"{path}, line {number}: follows {request.follows}, which is no earlier request"
                )
            requests.append(request)
    if not requests:
        raise InvalidArgumentError(f"{path} has no requests")
    return requests


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.writelines(encoder.encode(request) + b"\n" for request in requests)


def clients_of(requests: Sequence[TraceRequest]) -> list[str]:
    """Everyone who sends something, sorted."""
    return sorted({request.client_id for request in requests})

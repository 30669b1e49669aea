"""A request: what a client asked for, and the tokens so far."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from pagoda.errors import PagodaError
from pagoda.scheduler.core.counters import Loss
from pagoda.scheduler.core.diary import Diary
from pagoda.scheduler.core.hashes import NO_HASHES, MediaItem, PrefixHashes

if TYPE_CHECKING:
    from pagoda.scheduler.core.lane import Lane
    from pagoda.scheduler.core.moves import Move


class FinishReason(IntEnum):
    """Why a request ended; the values are the wire values."""

    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended. A request gets exactly one."""

    reason: FinishReason
    stop_token_id: int | None = None
    """The token that ended it, with STOP; it is the last of the request's tokens."""
    error: PagodaError | None = None
    """With ERROR."""


LENGTH = End(FinishReason.LENGTH)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens and when to stop; defaults are filled in."""

    seed: int = 0
    max_tokens: int | None = None
    """Most tokens to generate; None: as many as the model's context leaves room for."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 keeps all."""
    min_p: float = 0.0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0


class RequestKey(NamedTuple):
    """Names an unfinished request: who sent it, and the sender's number for it."""

    origin: str
    number: int


class Request:
    """One request: in the queue, or in a row of a lane.

    While it has a row, the row counts its tokens, and those of the last steps are not in `token_ids` yet.
    """

    __slots__ = (
        "_num_tokens_when_lost",
        "adapter",
        "arrival",
        "arrived_at",
        "cache_salt",
        "client_id",
        "diary",
        "end",
        "forked_from",
        "hashes",
        "key",
        "lane",
        "loss",
        "lost_at",
        "max_num_tokens",
        "media",
        "move",
        "num_cached_tokens",
        "num_lanes_lost",
        "num_prompt_tokens",
        "priority",
        "rank",
        "request_id",
        "row",
        "sampling",
        "stop_ids",
        "timeout_s",
        "token_ids",
        "traceparent",
    )

    def __init__(
        self,
        key: RequestKey,
        token_ids: Iterable[int],
        sampling: Sampling,
        *,
        num_prompt_tokens: int | None = None,
        request_id: str = "",
        priority: int = 0,
        cache_salt: bytes = b"",
        client_id: str = "",
        adapter: str = "",
        media: tuple[MediaItem, ...] = (),
        forked_from: RequestKey | None = None,
        timeout_s: float | None = None,
        traceparent: str = "",
    ) -> None:
        """token_ids: the prompt, then what was generated before, where the request is handed over again
        num_prompt_tokens: how many of token_ids are the prompt; None = all
        forked_from: an unfinished request that begins alike, to share with it even what is not in a full block yet
        timeout_s: ends with an error when it has not ended this long after its arrival
        traceparent: W3C trace context of the span that it is a part of, for whoever makes spans
        """
        self.key = key
        self.request_id = request_id
        self.token_ids = array("I", token_ids)
        self.num_prompt_tokens = len(self.token_ids) if num_prompt_tokens is None else num_prompt_tokens
        self.sampling = sampling
        self.priority = priority
        self.cache_salt = cache_salt
        self.client_id = client_id
        self.adapter = adapter
        self.media = media
        self.forked_from = forked_from
        self.timeout_s = timeout_s
        self.traceparent = traceparent

        # Set when the request is accepted.
        self.arrival = 0
        self.arrived_at = 0.0
        self.rank: tuple[float, ...] = ()
        # Set when the model is known.
        self.max_num_tokens = 0
        self.stop_ids: frozenset[int] = frozenset()
        self.hashes = NO_HASHES

        self.lane: Lane | None = None
        self.row = -1
        """Its row in `lane`, while it has one."""
        self.move: Move | None = None
        """Its way to another lane, while it is on one."""
        self.num_lanes_lost = 0
        """Lanes that died while it ran on them and that brought it no token."""
        self._num_tokens_when_lost = 0
        self.lost_at: float | None = None
        """When it lost its lane or its blocks, until it has another token."""
        self.loss = Loss.EXECUTOR
        """How, if it did."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache when the request first got a row; None until then."""
        self.end: End | None = None
        self.diary: Diary | None = None
        """None: nobody wants to know."""

    @property
    def num_tokens(self) -> int:
        """In the queue and after the end; a running request's are counted by its row."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def note_lost(self, died: bool) -> None:
        """Its lane is gone. died: the lane did not leave in good order"""
        if len(self.token_ids) > self._num_tokens_when_lost:
            # What kills executors does so at the same token each time.
            self.num_lanes_lost = 0
        self._num_tokens_when_lost = len(self.token_ids)
        self.num_lanes_lost += died

    def begin_hashes(self, block_size: int) -> None:
        """Names the full blocks of the tokens so far. block_size: the cell's."""
        self.hashes = PrefixHashes(block_size, salt=self.cache_salt, adapter=self.adapter, media=self.media)
        self.hashes.extend(self.token_ids)

    def end_after(self, token_id: int, num_tokens: int) -> End | None:
        """How the request ends once `token_id` is the last of its `num_tokens`; None: it goes on."""
        num_output = num_tokens - self.num_prompt_tokens
        if num_output > 0 and token_id in self.stop_ids and num_output >= self.sampling.min_tokens:
            return End(FinishReason.STOP, stop_token_id=token_id)
        if num_tokens >= self.max_num_tokens:
            return LENGTH
        return None

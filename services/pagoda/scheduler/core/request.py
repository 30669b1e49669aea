"""A request: what a client asked for, and the tokens so far."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from pagoda.errors import PagodaError
from pagoda.scheduler.core.hashes import extend_chain

if TYPE_CHECKING:
    from pagoda.scheduler.core.lane import Row


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
    """One request. `row` is its place on an executor while it has one."""

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
    ) -> None:
        """token_ids: the prompt, then what was generated before, where the request is handed over again
        num_prompt_tokens: how many of token_ids are the prompt; None = all
        """
        self.key = key
        self.request_id = request_id
        self.token_ids = array("I", token_ids)
        self.num_prompt_tokens = len(self.token_ids) if num_prompt_tokens is None else num_prompt_tokens
        self.sampling = sampling
        self.priority = priority
        self.cache_salt = cache_salt
        self.client_id = client_id

        # Set when the request is accepted.
        self.arrival = 0
        self.arrived_at = 0.0
        self.rank: tuple[int, ...] = ()
        # Set when the model is known.
        self.max_num_tokens = 0
        self.stop_ids: frozenset[int] = frozenset()

        self.row: Row | None = None
        self.num_lanes_lost = 0
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache when the request first got a row; None until then."""
        self.end: End | None = None
        self._block_hashes: list[bytes] = []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def block_hashes(self, block_size: int) -> list[bytes]:
        """The chain hashes of the full blocks of the tokens so far. block_size: the cell's, always the same."""
        if (len(self._block_hashes) + 1) * block_size <= len(self.token_ids):
            extend_chain(self._block_hashes, self.cache_salt, self.token_ids, block_size)
        return self._block_hashes

    def forget_hashes(self) -> None:
        """The cell's block size may have changed."""
        self._block_hashes = []

    def natural_end(self) -> End | None:
        """How the tokens so far end the request; None: it goes on."""
        if self.num_output_tokens > 0:
            last = self.token_ids[-1]
            if last in self.stop_ids and self.num_output_tokens >= self.sampling.min_tokens:
                return End(FinishReason.STOP, stop_token_id=last)
        if len(self.token_ids) >= self.max_num_tokens:
            return End(FinishReason.LENGTH)
        return None

"""What an executor declares about itself and its model, and what makes executors fit into one cell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum

from pagoda.errors import FailedPreconditionError, InvalidArgumentError

# Far above any real executor; what is beyond is a defect and would only cost the scheduler memory.
MAX_NUM_BLOCKS = 1 << 24
MAX_NUM_SEQS = 1 << 16


class ExecutorRole(IntEnum):
    """The values are the wire values."""

    UNSPECIFIED = 0
    MIXED = 1
    PREFILL = 2
    DECODE = 3


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The served model. Executors of one cell agree on all of it."""

    fingerprint: str
    model_type: str
    max_model_len: int
    """Longest prompt + completion, in tokens."""
    vocab_size: int
    eos_token_ids: frozenset[int]
    dtype: str
    kv_dtype: str = ""
    """Of the KV cache: it, too, decides about tokens."""


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """One executor as it registered."""

    name: str
    role: ExecutorRole
    model: ModelSpec
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    receives: bool = False
    """Others can push KV blocks to it."""
    num_host_blocks: int = 0
    """Blocks of host memory."""
    swap_only: bool = False
    """Host memory is for requests that were preempted, not for every block that is evicted."""

    def check(self) -> None:
        """Raises InvalidArgumentError for values that no executor can work with."""
        _check_range("block_size", self.block_size, 1, MAX_NUM_BLOCKS)
        _check_range("num_blocks", self.num_blocks, 1, MAX_NUM_BLOCKS)
        _check_range("num_host_blocks", self.num_host_blocks, 0, MAX_NUM_BLOCKS)
        _check_range("max_num_seqs", self.max_num_seqs, 1, MAX_NUM_SEQS)
        _check_range("max_model_len", self.model.max_model_len, 2, MAX_NUM_BLOCKS)
        _check_range("vocab_size", self.model.vocab_size, 1, MAX_NUM_BLOCKS)
        if self.role is ExecutorRole.DECODE and not self.receives:
            raise InvalidArgumentError(
                "an executor of role DECODE must name transfer_endpoints, where others push KV blocks to",
                param="transfer_endpoints",
            )
        # Every running request can then have at least its one token in every step.
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidArgumentError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is smaller than max_num_seqs "
                f"({self.max_num_seqs}); raise the former or lower the latter",
                param="max_num_batched_tokens",
            )
        # The longest request can then always finish, if need be alone.
        if self.num_blocks * self.block_size < self.model.max_model_len:
            raise InvalidArgumentError(
                f"the KV cache holds {self.num_blocks * self.block_size} tokens, fewer than max_model_len "
                f"({self.model.max_model_len}); give the cache more memory or lower max_model_len",
                reason="KV_CACHE_TOO_SMALL",
                param="num_blocks",
            )

    def check_joins(self, other: LaneSpec) -> None:
        """Raises FailedPreconditionError unless this executor can serve the same requests as `other`."""
        differences = [
            f"{field.name} {getattr(self.model, field.name)!r} instead of {getattr(other.model, field.name)!r}"
            for field in dataclasses.fields(ModelSpec)
            if getattr(self.model, field.name) != getattr(other.model, field.name)
        ]
        # Block hashes are chained block by block, so a cell has one block size.
        if self.block_size != other.block_size:
            differences.append(f"block_size {self.block_size} instead of {other.block_size}")
        if differences:
            raise FailedPreconditionError(
                f"executor {self.name!r} does not fit the cell, which has executor {other.name!r}: "
                f"{'; '.join(differences)}. Start it with the same model and options, or in another cell",
                reason="EXECUTOR_MISMATCH",
            )


def _check_range(param: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise InvalidArgumentError(f"{param} must be from {lowest} to {highest}, got {value}", param=param)

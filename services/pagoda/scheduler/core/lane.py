"""One executor as the scheduler sees it: its rows, its blocks, and the steps it was sent and has not answered.

A row of a request that ended keeps its index and its blocks until every step that runs it has come back: until then
the executor may still write to them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

from pagoda.errors import InvalidArgumentError
from pagoda.scheduler.core.blocks import BlockPool
from pagoda.scheduler.core.plan import StepResult
from pagoda.scheduler.core.request import Request
from pagoda.scheduler.core.spec import LaneSpec


class BadResultError(InvalidArgumentError):
    """An executor answered something that does not answer its plan."""

    reason = "BAD_RESULT"


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a request, as far as it is in a lane's blocks."""

    block_ids: list[int]
    num_tokens: int
    num_expected_tokens: int
    """Tokens right behind it that another row is computing."""


class Row:
    """A request's place on an executor.

    Tokens [0, num_computed_tokens) have, or with the steps in flight will have, their keys and values in the blocks.
    """

    __slots__ = (
        "block_ids",
        "index",
        "lane",
        "last_step",
        "num_computed_tokens",
        "num_remembered_blocks",
        "num_sampling",
        "request",
    )

    def __init__(self, lane: Lane, index: int, request: Request, block_ids: list[int], num_shared_blocks: int) -> None:
        self.lane = lane
        self.index = index
        self.request = request
        self.block_ids = block_ids
        self.num_computed_tokens = num_shared_blocks * lane.spec.block_size
        self.num_remembered_blocks = num_shared_blocks
        """The first blocks, which the prefix cache knows or has an equal of."""
        self.num_sampling = 0
        """Tokens that steps in flight will sample."""
        self.last_step = 0
        """The last step that runs the row; 0 = none yet."""

    @property
    def num_known_tokens(self) -> int:
        """Tokens of which the executor will know the ids when its steps in flight are done."""
        return len(self.request.token_ids) + self.num_sampling

    @property
    def num_uncomputed_tokens(self) -> int:
        # A request's very last token is never computed: nothing follows it.
        request = self.request
        known = len(request.token_ids) + self.num_sampling
        return min(known, request.max_num_tokens - 1) - self.num_computed_tokens


@dataclass(slots=True)
class Flight:
    """A step that was planned. Parallel: rows that run and how many of their tokens are computed after it."""

    step: int
    sent_at: float
    rows: list[Row] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    sampling: dict[int, Row] = field(default_factory=dict)
    """The rows that sample, by index."""


class Lane:
    """State of one executor. `Draft` plans its steps; this class applies what comes back."""

    def __init__(
        self, lane_id: str, spec: LaneSpec, *, enable_prefix_caching: bool = True, max_plans_in_flight: int = 1
    ) -> None:
        self.id = lane_id
        self.spec = spec
        self.pool = BlockPool(spec.num_blocks, enable_prefix_caching=enable_prefix_caching)
        self.rows: list[Row | None] = [None] * spec.max_num_seqs
        # Rows of requests that go on, best rank first.
        self.running: list[Row] = []
        self.flights: deque[Flight] = deque()
        # Rows that were given up since the last plan.
        self.ended_rows: list[int] = []
        self.last_planned_step = 0
        self.last_forward_ns = 0
        self._max_plans_in_flight = max_plans_in_flight
        self._free_rows = list(reversed(range(spec.max_num_seqs)))

    @property
    def can_plan(self) -> bool:
        return len(self.flights) < self._max_plans_in_flight

    @property
    def num_completed_steps(self) -> int:
        return self.flights[0].step - 1 if self.flights else self.last_planned_step

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.spec.block_size)

    def find_prefix(self, request: Request) -> Prefix:
        """The beginning of `request` that this lane has computed already."""
        block_size = self.spec.block_size
        # The last token is computed again in any case, so that the next one can be sampled.
        hashes = request.block_hashes(block_size)[: (request.num_tokens - 1) // block_size]
        block_ids = self.pool.find_prefix(hashes)
        num_expected = self.pool.count_expected(hashes[len(block_ids) :])
        return Prefix(block_ids, len(block_ids) * block_size, num_expected * block_size)

    def start(self, request: Request, prefix: Prefix) -> Row:
        """Gives `request` a row, and blocks for all of its tokens; there must be as many."""
        shared = prefix.block_ids
        self.pool.share(shared)
        allocated = self.pool.allocate(self.num_blocks_for(request.num_tokens) - len(shared))
        assert allocated is not None
        hashes = request.block_hashes(self.spec.block_size)[len(shared) :]
        self.pool.expect(allocated[: len(hashes)], hashes)
        row = Row(self, self._free_rows.pop(), request, shared + allocated, len(shared))
        self.rows[row.index] = row
        insort(self.running, row, key=_rank)
        request.row = row
        return row

    def leave(self, row: Row) -> None:
        """The row's request ended or must make room. Frees the row now, or when its last step has come back."""
        del self.running[bisect_left(self.running, row.request.rank, key=_rank)]
        row.request.row = None
        if row.last_step <= self.num_completed_steps:
            self._release(row)

    def commit(self, result: StepResult) -> list[tuple[Request, int]]:
        """Applies the oldest step in flight; returns the requests that go on, each with its new token.

        Raises BadResultError, with nothing changed, when `result` is not that step's.
        """
        flight = self._check(result)
        self.flights.popleft()
        self.last_forward_ns = result.forward_ns
        for row, num_computed in zip(flight.rows, flight.num_computed_tokens, strict=True):
            if num_computed >= (row.num_remembered_blocks + 1) * self.spec.block_size:
                self._remember_blocks(row, num_computed)
            if row.request.row is not row and row.last_step == flight.step:
                self._release(row)
        sampled: list[tuple[Request, int]] = []
        for index, token_id in zip(result.rows, result.token_ids, strict=True):
            row = flight.sampling[index]
            row.num_sampling -= 1
            if row.request.row is row:
                sampled.append((row.request, token_id))
        return sampled

    def check_integrity(self) -> list[str]:
        """Broken invariants, as sentences."""
        held = [row for row in self.rows if row is not None]
        names = {row: f"request {row.request.request_id or row.request.key} in row {row.index}" for row in held}
        violations = self.pool.check_integrity({names[row]: row.block_ids for row in held})
        for row, name in names.items():
            if row.request.row is not row and row.last_step <= self.num_completed_steps:
                violations.append(f"{name} has left and still holds blocks {row.block_ids}")
            if row.request.row is row and row.request.end is not None:
                violations.append(f"{name} has ended and still runs")
            if len(row.block_ids) < self.num_blocks_for(row.num_computed_tokens):
                violations.append(
                    f"{name} has {row.num_computed_tokens} computed tokens in {len(row.block_ids)} blocks"
                )
        if sorted(self._free_rows) != [index for index, each in enumerate(self.rows) if each is None]:
            violations.append("the list of free rows does not match the rows in use")
        if self.running != sorted((row for row in held if row.request.row is row), key=_rank):
            violations.append("the list of running requests does not match the rows in use")
        return [f"{self.spec.name or self.id}: {violation}" for violation in violations]

    def _check(self, result: StepResult) -> Flight:
        if not self.flights or self.flights[0].step != result.step:
            expected = self.flights[0].step if self.flights else "none"
            raise BadResultError(f"result of step {result.step}, expected {expected}")
        flight = self.flights[0]
        if len(result.rows) != len(result.token_ids):
            raise BadResultError(f"{len(result.rows)} rows and {len(result.token_ids)} tokens in step {result.step}")
        if len(result.rows) != len(flight.sampling) or set(result.rows) != flight.sampling.keys():
            raise BadResultError(f"step {result.step} sampled other rows than planned")
        if len(result.token_ids) and max(result.token_ids) >= self.spec.model.vocab_size:
            raise BadResultError(f"step {result.step} sampled a token outside the vocabulary")
        return flight

    def _remember_blocks(self, row: Row, num_computed: int) -> None:
        # A step in flight may have computed a token that came after the request's end.
        num_full = min(num_computed, row.request.num_tokens) // self.spec.block_size
        hashes = row.request.block_hashes(self.spec.block_size)
        for position in range(row.num_remembered_blocks, num_full):
            self.pool.remember(row.block_ids[position], hashes[position])
        row.num_remembered_blocks = num_full

    def _release(self, row: Row) -> None:
        self.pool.release(row.block_ids)
        self.rows[row.index] = None
        self._free_rows.append(row.index)
        self.ended_rows.append(row.index)


def _rank(row: Row) -> tuple[int, ...]:
    return row.request.rank

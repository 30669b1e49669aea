"""What is measured of a scheduler, whichever it is: Pagoda's and vLLM's run the same cases.

A case runs a `Subject` against an executor that answers at once, so that what is timed is the scheduler alone. It
knows neither of the two; it runs under either's interpreter.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, Protocol

VOCAB_SIZE = 32_000
MAX_MODEL_LEN = 8192
# All prompts start in one step, so that rows stand where their lengths say.
MAX_NUM_BATCHED_TOKENS = 1 << 20
BLOCK_SIZE = 16
PROMPT_TOKENS = 128

DECODE_ROWS = (1, 32, 256, 1024, 4096)
# Blocks for 4096 rows of 128 + 300 tokens.
DECODE_BLOCKS = 1 << 17
# Tokens of a request where requests come and go: one in 20 rows, 5 %, ends in every step.
LIFETIME_STEPS = 20
TURNOVER_ROWS = (32, 256, 1024)
PREFIX_BLOCK_SIZES = (16, 128)
PREFIX_TOKENS = 1024
SUFFIX_TOKENS = 64
PREFIX_PROMPTS = 200

# Whole cycles of everything that depends on a row's number of tokens.
DECODE_STEPS = 256
DECODE_STEPS_OF_MANY_ROWS = 128

Measurement = dict[str, Any]
"""What was measured ("case", "rows", "depth", "block_size"), and [median, p99, mean] in us per column."""


@dataclass(frozen=True)
class Shape:
    """The executor that a subject schedules for."""

    num_rows: int
    num_blocks: int = DECODE_BLOCKS
    block_size: int = BLOCK_SIZE
    depth: int = 1
    """Plans in flight."""


class Subject(Protocol):
    """A scheduler and an executor without a model."""

    def build(self, number: int, token_ids: list[int], max_tokens: int) -> Any:
        """A request, not hashed yet, that generates max_tokens tokens."""

    def hash(self, request: Any) -> None:
        """Names the full blocks of a request from `build`."""

    def lookup(self, request: Any) -> int:
        """How many tokens of a hashed request are in the prefix cache."""

    def submit(self, number: int, token_ids: list[int], max_tokens: int) -> None:
        """Builds, hashes and queues a request."""

    def plan(self) -> Any | None:
        """None when there is nothing to run, or no more until a step has come back."""

    def names_blocks(self, plan: Any) -> bool:
        """A row gets a block."""

    def encode(self, plan: Any) -> bytes:
        """As it is sent to the executor."""

    def settle(self) -> None:
        """Bookkeeping that can wait until the plan is on its way."""

    def execute(self, plan: Any, encoded: bytes) -> tuple[Any, int]:
        """The result, and how many rows sampled."""

    def commit(self, result: Any) -> None:
        """Takes a result up to the tokens that would be sent to the clients."""


@dataclass(slots=True)
class StepTimes:
    """Of one turn, in ns: a plan, and the commit of a result."""

    submit: int = 0
    """Of all requests that arrived before it."""
    plan: int = 0
    commit: int = 0
    settle: int = 0
    encode: int = 0
    num_sampled: int = 0
    names_blocks: bool = False


@dataclass
class Loop:
    """Keeps `depth` plans of `subject` in flight."""

    subject: Subject
    depth: int
    _in_flight: deque[Any] = field(default_factory=deque)

    def turn(self) -> StepTimes:
        """One step is planned, and the oldest one is committed once `depth` are in flight."""
        subject, times = self.subject, StepTimes()
        started = perf_counter_ns()
        plan = subject.plan()
        times.plan = perf_counter_ns() - started
        encoded = b""
        if plan is not None:
            times.names_blocks = subject.names_blocks(plan)
            started = perf_counter_ns()
            encoded = subject.encode(plan)
            times.encode = perf_counter_ns() - started
        started = perf_counter_ns()
        subject.settle()
        times.settle = perf_counter_ns() - started
        if plan is not None:
            result, times.num_sampled = subject.execute(plan, encoded)
            self._in_flight.append(result)
        if self._in_flight and (plan is None or len(self._in_flight) == self.depth):
            result = self._in_flight.popleft()
            started = perf_counter_ns()
            subject.commit(result)
            times.commit = perf_counter_ns() - started
        return times


def measure(make: Callable[[Shape], Subject], *, rows: Sequence[int], freeze: bool) -> Iterator[Measurement]:
    """Every case, one after the other.

    rows: only these numbers of rows
    freeze: keep what is there when the timing starts from the garbage collector, as a service does at its start
    """
    for depth in (1, 2):
        for num_rows in (n for n in DECODE_ROWS if n in rows):
            for staggered in (False, True):
                shape = Shape(num_rows, depth=depth)
                yield _decode(make(shape), shape, staggered=staggered, freeze=freeze)
    for num_rows in (n for n in TURNOVER_ROWS if n in rows):
        # Room for twice what runs: what is cached is evicted all the time, as in a service that has run for a while.
        num_blocks = max(2 * num_rows * (PROMPT_TOKENS + LIFETIME_STEPS) // BLOCK_SIZE, MAX_MODEL_LEN // BLOCK_SIZE)
        shape = Shape(num_rows, num_blocks)
        yield _turnover(make(shape), shape, freeze=freeze)
    for block_size in PREFIX_BLOCK_SIZES:
        yield _prefix(make(Shape(256, DECODE_BLOCKS // block_size, block_size)), block_size, freeze=freeze)


def _decode(subject: Subject, shape: Shape, *, staggered: bool, freeze: bool) -> Measurement:
    """Every row runs in every step. staggered: in every step as many rows cross a block boundary as in every other."""
    num_rows = shape.num_rows
    for number in range(num_rows):
        length = PROMPT_TOKENS + (number % BLOCK_SIZE if staggered else 0)
        subject.submit(number, _prompt(number, length), 4096)
    loop = Loop(subject, shape.depth)
    _run_until(loop, lambda times: times.num_sampled == num_rows)
    # Python's cyclic collector runs as it would, but starts from the same place each time.
    for _ in range(BLOCK_SIZE):
        loop.turn()
    _collect(freeze)
    times, since_blocks = [], 0
    for _ in range(DECODE_STEPS if num_rows <= 1024 else DECODE_STEPS_OF_MANY_ROWS):
        turn = loop.turn()
        assert turn.num_sampled == num_rows
        since_blocks = 0 if turn.names_blocks else since_blocks + 1
        # The work for a full block is around the step in which the next one is named.
        if staggered or 2 < since_blocks < BLOCK_SIZE - 3:
            times.append(turn)
    return {"case": "staggered" if staggered else "steady", "rows": num_rows, "depth": shape.depth, **_summary(times)}


def _turnover(subject: Subject, shape: Shape, *, freeze: bool) -> Measurement:
    """In every step 1 / LIFETIME_STEPS of the rows end by their length, and as many new requests start."""
    num_rows = shape.num_rows
    loop = Loop(subject, shape.depth)
    times = []
    number, num_warm_up = 0, 5 * LIFETIME_STEPS
    for index in range(num_warm_up + 10 * LIFETIME_STEPS):
        if index == num_warm_up:
            _collect(freeze)
        last = (index + 1) * num_rows // LIFETIME_STEPS
        prompts = [(number, _prompt(number, PROMPT_TOKENS)) for number in range(number, last)]
        number = last
        started = perf_counter_ns()
        for each, prompt in prompts:
            subject.submit(each, prompt, LIFETIME_STEPS)
        submit = perf_counter_ns() - started
        turn = loop.turn()
        turn.submit = submit
        if index >= num_warm_up:
            assert turn.num_sampled == num_rows
            times.append(turn)
    return {"case": "turnover", "rows": num_rows, "depth": 1, **_summary(times)}


def _prefix(subject: Subject, block_size: int, *, freeze: bool) -> Measurement:
    """A prompt whose first PREFIX_TOKENS tokens are cached and whose last SUFFIX_TOKENS are its own."""
    prefix = _prompt(0, PREFIX_TOKENS)
    loop = Loop(subject, 1)
    subject.submit(0, prefix, 1)
    _run_until(loop, lambda times: times.num_sampled == 0)
    _collect(freeze)
    columns: dict[str, list[int]] = {"hash": [], "lookup": [], "hash + lookup": [], "submit": [], "admitting step": []}
    for number in range(1, 1 + PREFIX_PROMPTS):
        prompt = prefix + _prompt(number, SUFFIX_TOKENS)
        request = subject.build(number, prompt, 1)
        started = perf_counter_ns()
        subject.hash(request)
        hashed = perf_counter_ns()
        num_cached = subject.lookup(request)
        looked_up = perf_counter_ns()
        assert num_cached == PREFIX_TOKENS, num_cached
        columns["hash"].append(hashed - started)
        columns["lookup"].append(looked_up - hashed)
        columns["hash + lookup"].append(looked_up - started)
        started = perf_counter_ns()
        subject.submit(number, prompt, 1)
        columns["submit"].append(perf_counter_ns() - started)
        turn = loop.turn()
        assert turn.num_sampled == 1
        columns["admitting step"].append(turn.plan)
        _run_until(loop, lambda times: times.num_sampled == 0)
    return {"case": "prefix", "block_size": block_size, **{name: summarize(ns) for name, ns in columns.items()}}


def _run_until(loop: Loop, condition: Callable[[StepTimes], bool]) -> None:
    for _ in range(1000):
        if condition(loop.turn()):
            return
    raise RuntimeError("the requests are not where they should be after 1000 steps")


def _collect(freeze: bool) -> None:
    gc.unfreeze()
    gc.collect()
    if freeze:
        gc.freeze()


def _summary(times: Sequence[StepTimes]) -> dict[str, list[float]]:
    columns = {
        "submit": [turn.submit for turn in times],
        "plan": [turn.plan for turn in times],
        "commit": [turn.commit for turn in times],
        "plan + commit": [turn.plan + turn.commit for turn in times],
        "settle": [turn.settle for turn in times],
        "encode": [turn.encode for turn in times],
        "all": [turn.submit + turn.plan + turn.commit + turn.settle for turn in times],
    }
    return {name: summarize(durations_ns) for name, durations_ns in columns.items()}


def summarize(durations_ns: Sequence[int]) -> list[float]:
    """[median, p99, mean], in us."""
    ordered = sorted(durations_ns)
    p99 = ordered[int(0.99 * (len(ordered) - 1))]
    return [value / 1000 for value in (statistics.median(ordered), p99, statistics.fmean(ordered))]


def _prompt(number: int, length: int) -> list[int]:
    """Different for every number."""
    return random.Random(number).choices(range(100, VOCAB_SIZE), k=length)

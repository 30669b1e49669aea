"""What happened to every request and when, and how full the cells were over time. All times are virtual seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pagoda.bench.scheduler.histogram import Histogram
from pagoda.bench.scheduler.trace import TraceRequest, clients_of
from pagoda.errors import PagodaError
from pagoda.scheduler.core.request import FinishReason, Request
from pagoda.scheduler.core.scheduler import Outputs

# What a token costs a client, as the fair policy counts: a computed prompt token, a generated one.
INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0


class Fate(IntEnum):
    NOT_SENT = 0
    UNFINISHED = 1
    FINISHED = 2
    REFUSED = 3
    FAILED = 4
    """Accepted, and ended with an error."""


@dataclass(slots=True)
class Timeline:
    """Samples at equal distances; parallel."""

    times_s: list[float] = field(default_factory=list)
    num_running: list[int] = field(default_factory=list)
    num_waiting: list[int] = field(default_factory=list)
    kv_use: list[float] = field(default_factory=list)
    """Share of all blocks that running requests hold."""
    service: list[NDArray[np.float64]] = field(default_factory=list)
    """[num_clients] so far."""
    backlog: list[NDArray[np.int64]] = field(default_factory=list)
    """[num_clients] requests that wait for their first row."""


class Recorder:
    """Arrays by request number, in the order of the trace. nan: it has not happened."""

    def __init__(self, trace: Sequence[TraceRequest]) -> None:
        def times() -> NDArray[np.float64]:
            return np.full(len(trace), np.nan)

        self.clients = clients_of(trace)
        numbers = {name: number for number, name in enumerate(self.clients)}
        self.client: NDArray[np.intp] = np.array([numbers[request.client_id] for request in trace], np.intp)
        self.num_prompt_tokens = np.array([request.num_prompt_tokens for request in trace])
        self.fate: NDArray[np.int8] = np.zeros(len(trace), np.int8)
        self.sent_s = times()
        self.admitted_s = times()
        self.first_token_s = times()
        self.last_token_s = times()
        self.ended_s = times()
        self.longest_gap_s: NDArray[np.float64] = np.zeros(len(trace))
        self.num_cached_tokens: NDArray[np.int64] = np.zeros(len(trace), np.int64)
        self.num_output_tokens: NDArray[np.int64] = np.zeros(len(trace), np.int64)
        self.gaps = Histogram()
        """From each token to the next of the same request."""
        self.errors: Counter[str] = Counter()
        """By code and reason, of those refused or failed."""
        self.service: NDArray[np.float64] = np.zeros(len(self.clients))
        self.backlog: NDArray[np.int64] = np.zeros(len(self.clients), np.int64)
        self.timeline = Timeline()

    def send(self, number: int, now: float) -> None:
        self._change(number, Fate.NOT_SENT, Fate.UNFINISHED)
        self.sent_s[number] = now
        self.backlog[self.client[number]] += 1

    def refuse(self, number: int, error: PagodaError, now: float) -> None:
        self._change(number, Fate.UNFINISHED, Fate.REFUSED)
        self.ended_s[number] = now
        self.backlog[self.client[number]] -= 1
        self._count(error)

    def take(self, outputs: Outputs, now: float) -> None:
        """What a scheduler has to say at `now`."""
        self._admit(outputs.admitted, now)
        for run in outputs.tokens:
            self._add_tokens(run.keys.astype(np.intp), now)
        for request in outputs.ended:
            self._end(request, now)

    def sample(self, now: float, num_running: int, num_waiting: int, kv_use: float) -> None:
        timeline = self.timeline
        timeline.times_s.append(now)
        timeline.num_running.append(num_running)
        timeline.num_waiting.append(num_waiting)
        timeline.kv_use.append(kv_use)
        timeline.service.append(self.service.copy())
        timeline.backlog.append(self.backlog.copy())

    def _admit(self, requests: Iterable[Request], now: float) -> None:
        for request in requests:
            number, num_cached = request.key.number, request.num_cached_tokens
            assert num_cached is not None
            assert np.isnan(self.admitted_s[number]), f"request {number} is admitted twice"
            self.admitted_s[number] = now
            self.num_cached_tokens[number] = num_cached
            self.service[self.client[number]] += INPUT_WEIGHT * (request.num_prompt_tokens - num_cached)
            self.backlog[self.client[number]] -= 1

    def _add_tokens(self, numbers: NDArray[np.intp], now: float) -> None:
        """One token each."""
        assert (self.fate[numbers] == Fate.UNFINISHED).all(), "a token after the end"
        is_first = self.num_output_tokens[numbers] == 0
        if is_first.any():
            self.first_token_s[numbers[is_first]] = now
            others = numbers[~is_first]
        else:
            others = numbers
        gaps = now - self.last_token_s[others]
        self.gaps.add_all(gaps)
        self.longest_gap_s[others] = np.maximum(self.longest_gap_s[others], gaps)
        self.last_token_s[numbers] = now
        self.num_output_tokens[numbers] += 1
        self.service += OUTPUT_WEIGHT * np.bincount(self.client[numbers], minlength=len(self.clients))

    def _end(self, request: Request, now: float) -> None:
        number, end = request.key.number, request.end
        assert end is not None
        self._change(number, Fate.UNFINISHED, Fate.FAILED if end.reason is FinishReason.ERROR else Fate.FINISHED)
        self.ended_s[number] = now
        if np.isnan(self.admitted_s[number]):
            self.backlog[self.client[number]] -= 1
        if end.error is not None:
            self._count(end.error)

    def _change(self, number: int, before: Fate, after: Fate) -> None:
        assert self.fate[number] == before, f"request {number}: {Fate(self.fate[number]).name}, then {after.name}"
        self.fate[number] = after

    def _count(self, error: PagodaError) -> None:
        self.errors[f"{error.code.name} {error.reason}"] += 1

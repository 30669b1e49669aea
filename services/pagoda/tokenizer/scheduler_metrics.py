"""What /metrics shows of the scheduler and the executors, from one of the scheduler's states.

Labels beside the model's name: role (prefill, decode, mixed), executor, direction (sent, received), reason, where,
lost (executor, executors, blocks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pagoda.v1.common_pb2 import ExecutorRole
from pagoda.v1.scheduler_pb2 import Durations, LaneState, SchedulerState, TransferCounters

MODEL_LABEL = "model_name"

Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]
"""(values of the labels, value)."""

_ROLES = {
    ExecutorRole.EXECUTOR_ROLE_MIXED: "mixed",
    ExecutorRole.EXECUTOR_ROLE_PREFILL: "prefill",
    ExecutorRole.EXECUTOR_ROLE_DECODE: "decode",
}


class SchedulerCollector(Collector):
    """Of the state of the scrape in progress; None: there is none."""

    def __init__(self, model_name: str) -> None:
        self.state: SchedulerState | None = None
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        if self.state is not None:
            yield from self._gauges(self.state)
            yield from self._counters(self.state)
            yield from self._pools(self.state)
            yield from self._moves(self.state)
            yield from self._transfers(self.state)

    def _gauges(self, state: SchedulerState) -> Iterator[Metric]:
        num_running = sum(lane.num_running for lane in state.lanes)
        num_blocks = sum(lane.kv_layout.num_blocks for lane in state.lanes)
        num_referenced = sum(lane.num_referenced_blocks for lane in state.lanes)
        num_host_blocks = sum(lane.num_host_blocks for lane in state.lanes)
        num_used_host_blocks = sum(lane.num_used_host_blocks for lane in state.lanes)
        for name, text, value in (
            ("vllm:num_requests_running", "Requests in executors' batches.", num_running),
            ("vllm:num_requests_waiting", "Requests in the scheduler's queue.", state.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 1 is all.", num_referenced / max(num_blocks, 1)),
            (
                "vllm:cpu_cache_usage_perc",
                "Share of the KV blocks of host memory in use, 1 is all.",
                num_used_host_blocks / max(num_host_blocks, 1),
            ),
            ("pagoda:oldest_waiting_seconds", "Time since the oldest waiting request came.", state.oldest_waiting_s),
        ):
            yield self._gauge(name, text, (), [((), value)])

    def _counters(self, state: SchedulerState) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", state.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", state.prefix_cache_hits),
            ("vllm:num_preemptions", "Requests that lost their blocks to others.", state.preemptions),
            ("pagoda:requests_rejected", "Requests refused, as by a full queue.", state.requests_rejected),
            ("pagoda:requests_expired", "Requests whose time was up before they were done.", state.requests_expired),
            ("pagoda:requests_recovered", "Requests taken back from executors that were lost.", state.recoveries),
            ("pagoda:offloaded_blocks", "KV blocks copied to host memory.", state.offloaded_blocks),
            ("pagoda:loaded_blocks", "KV blocks copied back from host memory.", state.loaded_blocks),
            ("pagoda:merged_blocks", "KV blocks given back for others of the same content.", state.merged_blocks),
            ("pagoda:copied_blocks", "Partly filled KV blocks in whose copy requests went on.", state.copied_blocks),
        ):
            yield self._counter(name, text, (), [((), value)])
        yield self._histogram(
            "pagoda:recovery_seconds",
            "From the loss of a request's executor or blocks to its next token, by what was lost.",
            ("lost",),
            [((lost,), durations) for lost, durations in sorted(state.recovery_times.items())],
        )

    def _pools(self, state: SchedulerState) -> Iterator[Metric]:
        pools: dict[str, list[LaneState]] = {name: [] for name in _ROLES.values()}
        for lane in state.lanes:
            if name := _ROLES.get(lane.role):
                pools[name].append(lane)
        for name, text, values in (
            ("pagoda:executors", "Executors.", {role: len(lanes) for role, lanes in pools.items()}),
            (
                "pagoda:requests_running",
                "Requests in executors' batches.",
                {role: sum(lane.num_running for lane in lanes) for role, lanes in pools.items()},
            ),
            (
                "pagoda:requests_arriving",
                "Requests on their way from other executors.",
                {role: sum(lane.num_arriving for lane in lanes) for role, lanes in pools.items()},
            ),
        ):
            yield self._gauge(name, text, ("role",), _by_label(values))

    def _moves(self, state: SchedulerState) -> Iterator[Metric]:
        yield self._counter(
            "pagoda:prefills",
            "Prompts computed by the executor that goes on with them (local), or by another one (remote).",
            ("where",),
            _by_label({"local": state.local_prefills, "remote": state.remote_prefills}),
        )
        for name, text, value in (
            ("pagoda:moves_begun", "Requests that were to go on on another executor.", state.moves_begun),
            ("pagoda:moves_done", "Requests that went on on another executor.", state.moves_done),
            ("pagoda:moved_blocks", "KV blocks that they took along.", state.moved_blocks),
        ):
            yield self._counter(name, text, (), [((), value)])
        yield self._counter(
            "pagoda:moves_failed", "Moves given up, by reason.", ("reason",), _by_label(state.move_failures)
        )
        yield self._summary(
            "pagoda:move_wait_seconds",
            "How long requests stood still between two executors.",
            state.moves_done,
            state.move_wait_s,
        )

    def _transfers(self, state: SchedulerState) -> Iterator[Metric]:
        ends = [
            (each.name, direction, getattr(each.stats, direction))
            for each in state.transfers
            for direction in ("sent", "received")
        ]
        labels = ("executor", "direction")
        for field, text in (
            ("blocks", "KV blocks that executors have sent and received."),
            ("bytes", "The same in bytes."),
            ("seconds", "Time spent copying them out of caches, and into them."),
        ):
            samples = [((name, direction), getattr(counters, field)) for name, direction, counters in ends]
            yield self._counter(f"pagoda:kv_transfer_{field}", text, labels, samples)
        yield self._counter(
            "pagoda:kv_transfer_failures", "Transfers that failed, by reason.", (*labels, "reason"), _failures(ends)
        )
        dropped = [
            ((name, reason), getattr(counters, f"{reason}_blocks"))
            for name, direction, counters in ends
            if direction == "received"
            for reason in ("late", "duplicate")
        ]
        yield self._counter(
            "pagoda:kv_transfer_dropped_blocks",
            "KV blocks that came too late, or for the second time.",
            ("executor", "reason"),
            dropped,
        )

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
        gauge = GaugeMetricFamily(name, text, labels=(MODEL_LABEL, *labels))
        for values, value in samples:
            gauge.add_metric((self._model_name, *values), value)
        return gauge

    def _counter(self, name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
        counter = CounterMetricFamily(name, text, labels=(MODEL_LABEL, *labels))
        for values, value in samples:
            counter.add_metric((self._model_name, *values), value)
        return counter

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], Durations]]
    ) -> Metric:
        histogram = HistogramMetricFamily(name, text, labels=(MODEL_LABEL, *labels))
        for values, durations in samples:
            bounds = [*map(floatToGoString, durations.bounds_s), "+Inf"]
            buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
            histogram.add_metric((self._model_name, *values), buckets, durations.sum_s)
        return histogram

    def _summary(self, name: str, text: str, count: int, total: float) -> Metric:
        summary = SummaryMetricFamily(name, text, labels=(MODEL_LABEL,))
        summary.add_metric((self._model_name,), count, total)
        return summary


def _by_label(values: Mapping[str, int]) -> Samples:
    return [((label,), value) for label, value in values.items()]


def _failures(ends: Iterable[tuple[str, str, TransferCounters]]) -> Samples:
    for name, direction, counters in ends:
        for reason, count in counters.failures.items():
            yield (name, direction, reason), count

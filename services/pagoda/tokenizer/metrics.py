"""What /metrics shows, under vLLM's names where the meaning is the same, else under `pagoda:` ones.

Times are measured in this process, from the arrival of the client's request. The scheduler's own (`scheduler_metrics`)
are read by a `Scheduler.GetState` call at each scrape, and are absent while it is away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from pagoda.tokenizer.scheduler_metrics import MODEL_LABEL, SchedulerCollector
from pagoda.v1.common_pb2 import FinishReason
from pagoda.v1.scheduler_pb2 import SchedulerState

if TYPE_CHECKING:
    from pagoda.tokenizer.completion import Completion, Delta

# Seconds.
_FIRST_TOKEN_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
    20,
    40,
    80,
    160,
)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 20)
_REQUEST_BUCKETS = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
# Tokens.
_LENGTH_BUCKETS = tuple(count * 10**power for power in range(6) for count in (1, 2, 5))

_FINISHED_REASONS = {
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_ABORT: "abort",
    FinishReason.FINISH_REASON_ERROR: "error",
}


class Metrics:
    """All metrics of one tokenizer process, labelled with the served model's name."""

    def __init__(self, model_name: str) -> None:
        # Time stamps beside every metric; Prometheus sees restarts without them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._scheduler = SchedulerCollector(model_name)
        self.registry.register(self._scheduler)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, [MODEL_LABEL], registry=self.registry).labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, [MODEL_LABEL], registry=self.registry, buckets=buckets).labels(model_name)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of requests that got their first token.")
        self.generation_tokens = counter("vllm:generation_tokens", "Generated tokens.")
        self.time_to_first_token = histogram(
            "vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST_TOKEN_BUCKETS
        )
        self.inter_token_latency = histogram(
            "vllm:inter_token_latency_seconds", "Between one arrival of tokens and the next.", _TOKEN_BUCKETS
        )
        self.time_per_output_token = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per token after the first.", _TOKEN_BUCKETS
        )
        self.e2e_latency = histogram(
            "vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", _REQUEST_BUCKETS
        )
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens per completion.", _LENGTH_BUCKETS
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Generated tokens per completion.", _LENGTH_BUCKETS
        )
        labels = [MODEL_LABEL, "finished_reason"]
        ended = Counter("vllm:request_success", "Completions by how they ended.", labels, registry=self.registry)
        self.ended = {reason: ended.labels(model_name, name) for reason, name in _FINISHED_REASONS.items()}

    def render(self, state: SchedulerState | None) -> bytes:
        """Prometheus' text format. state: the scheduler's; None leaves its metrics out."""
        self._scheduler.state = state
        return generate_latest(self.registry)


class RequestTimes:
    """The clock of one request: turns deltas into observations.

    arrived_at: on the clock of `time.perf_counter`, as all times here
    """

    __slots__ = ("_arrived_at", "_metrics")

    def __init__(self, metrics: Metrics, arrived_at: float) -> None:
        self._metrics = metrics
        self._arrived_at = arrived_at

    def took(self, completion: Completion, delta: Delta, now: float, *, is_first_of_prompt: bool) -> None:
        """`completion` has taken in `delta`."""
        metrics = self._metrics
        if delta.token_ids:
            metrics.generation_tokens.inc(len(delta.token_ids))
            if completion.first_token_at:
                metrics.inter_token_latency.observe(now - completion.last_token_at)
            else:
                completion.first_token_at = now
                metrics.time_to_first_token.observe(now - self._arrived_at)
                if is_first_of_prompt:
                    metrics.prompt_tokens.inc(completion.num_prompt_tokens)
            completion.last_token_at = now
        if delta.end is not None:
            self._ended(completion, delta.end.reason, now)

    def _ended(self, completion: Completion, reason: FinishReason, now: float) -> None:
        metrics = self._metrics
        metrics.ended[reason].inc()
        metrics.e2e_latency.observe(now - self._arrived_at)
        metrics.request_prompt_tokens.observe(completion.num_prompt_tokens)
        metrics.request_generation_tokens.observe(completion.num_tokens)
        if completion.num_tokens > 1:
            decoding_s = completion.last_token_at - completion.first_token_at
            metrics.time_per_output_token.observe(decoding_s / (completion.num_tokens - 1))

    def left(self, reason: FinishReason) -> None:
        """A completion did not come to its end: its client went away, or it failed."""
        self._metrics.ended[reason].inc()

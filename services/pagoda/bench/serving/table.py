"""The report for people, as `vllm bench serve` words it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pagoda.bench.serving.report import METRICS, Report

_WIDTH = 50
_HEADERS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
# Kinds of failures that are told apart.
_MAX_FAILURES = 10


def format_report(report: Report, metrics: Sequence[str], percents: Sequence[float]) -> str:
    """metrics: those whose statistics are shown"""
    return "\n".join(_lines(report, metrics, percents))


def _lines(report: Report, metrics: Sequence[str], percents: Sequence[float]) -> Iterator[str]:
    yield " Serving Benchmark Result ".center(_WIDTH, "=")
    yield _line("Successful requests:", report["completed"])
    yield _line("Failed requests:", report["failed"])
    for reason, count in list(report["failures"].items())[:_MAX_FAILURES]:
        yield f"  {count} x {reason}"
    if (left := len(report["failures"]) - _MAX_FAILURES) > 0:
        yield f"  ... and {left} other reasons"
    yield _line("Benchmark duration (s):", report["duration"])
    yield _line("Total input tokens:", report["total_input_tokens"])
    if report["total_cached_tokens"] is not None:
        yield _line("  of these cached:", report["total_cached_tokens"])
    yield _line("Total generated tokens:", report["total_output_tokens"])
    if report["uncounted"]:
        yield f"  the server sent no usage for {report['uncounted']} requests: their events are counted instead"
    yield _line("Request throughput (req/s):", report["request_throughput"])
    if report["request_goodput"] is not None:
        yield _line("Request goodput (req/s):", report["request_goodput"])
    yield _line("Output token throughput (tok/s):", report["output_throughput"])
    yield _line("Peak output token throughput (tok/s):", report["max_output_tokens_per_s"])
    yield _line("Peak concurrent requests:", report["max_concurrent_requests"])
    yield _line("Total token throughput (tok/s):", report["total_token_throughput"])
    yield _line("Output tokens per event:", report["tokens_per_event"])
    yield _line("Client CPU per output token (us):", report["client_cpu_us_per_token"])
    yield _line("Client CPU (% of a core):", report["client_cpu_share"] * 100)
    for name in (each for each in METRICS if each in metrics):
        yield _HEADERS[name].center(_WIDTH, "-")
        title = name.upper()
        yield _line(f"Mean {title} (ms):", report[f"mean_{name}_ms"])
        yield _line(f"Median {title} (ms):", report[f"median_{name}_ms"])
        for percent in percents:
            yield _line(f"P{percent:g} {title} (ms):", report[f"p{percent:g}_{name}_ms"])
    yield "=" * _WIDTH


def _line(title: str, value: float | None) -> str:
    figure = "-" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"
    return f"{title:<40} {figure:<10}".rstrip()

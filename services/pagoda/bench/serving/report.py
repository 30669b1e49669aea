"""The figures of a run, under the names that `vllm bench serve` gives them, and what they are made of.

    TTFT    from sending a request (connecting included) to its first event with text
    TPOT    from there to the last event of its choice, over the tokens after the first, as the server counts them
    ITL     between two events with text of one request; where an event holds several tokens (`tokens_per_event`), it is
            the wait of a reader for the next piece, and TPOT is the time per token
    E2EL    from sending a request to the last event of its choice

Of requests that have not failed, in milliseconds. Throughput is over the time from the first request to the last end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagoda.bench.serving.answer import Answer

METRICS = ("ttft", "tpot", "itl", "e2el")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")

MS = 1e3

Report = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that was seen.

    cpu_s: processor time of this process meanwhile
    """

    answers: Sequence[Answer]
    duration_s: float
    cpu_s: float


def make_report(run: Run, percents: Sequence[float], goodput_ms: Mapping[str, float]) -> Report:
    """goodput_ms: bounds that a good request keeps, by metric"""
    good = [answer for answer in run.answers if answer.is_ok]
    failed = [answer for answer in run.answers if not answer.is_ok]
    num_input = sum(answer.num_prompt_tokens or 0 for answer in good)
    num_output = sum(answer.num_output_tokens for answer in good)
    num_events = sum(len(answer.event_times) for answer in good)
    cached = [answer.num_cached_tokens for answer in good if answer.num_cached_tokens is not None]
    per_token = run.cpu_s / num_output if num_output else None
    report: Report = {
        "duration": run.duration_s,
        "completed": len(good),
        "failed": len(failed),
        "failures": dict(Counter(answer.error for answer in failed).most_common()),
        "uncounted": sum(not answer.is_counted for answer in good),
        "total_input_tokens": num_input,
        "total_cached_tokens": sum(cached) if cached else None,
        "total_output_tokens": num_output,
        "request_throughput": len(good) / run.duration_s,
        "request_goodput": num_good(good, goodput_ms) / run.duration_s if goodput_ms else None,
        "output_throughput": num_output / run.duration_s,
        "total_token_throughput": (num_input + num_output) / run.duration_s,
        "max_output_tokens_per_s": peak_output(good),
        "max_concurrent_requests": peak_concurrency(good),
        "tokens_per_event": num_output / num_events if num_events else None,
        "client_cpu_us_per_token": None if per_token is None else per_token * 1e6,
        "client_cpu_share": run.cpu_s / run.duration_s,
    }
    for name, values in latencies_s(good).items():
        report |= _statistics(name, values, percents)
    return report


def details(answers: Sequence[Answer]) -> Report:
    """What each request got, in seconds, in the order of the prompts."""
    began = min((answer.started_at for answer in answers), default=0.0)
    return {
        "input_lens": [answer.num_prompt_tokens for answer in answers],
        "output_lens": [answer.num_output_tokens for answer in answers],
        "start_times": [answer.started_at - began for answer in answers],
        "queue_times": [answer.queued_s for answer in answers],
        "ttfts": [answer.ttft_s if answer.last_at else None for answer in answers],
        "itls": [np.diff(answer.event_times).tolist() for answer in answers],
        "latencies": [answer.e2el_s if answer.last_at else None for answer in answers],
        "errors": [answer.error for answer in answers],
    }


def latencies_s(answers: Sequence[Answer]) -> dict[str, Floats]:
    """By metric; those of answers that have them."""
    gaps = [np.diff(answer.event_times) for answer in answers]
    return {
        "ttft": np.array([answer.ttft_s for answer in answers]),
        "tpot": np.array([answer.tpot_s for answer in answers if answer.tpot_s is not None]),
        "itl": np.concatenate(gaps) if gaps else np.empty(0),
        "e2el": np.array([answer.e2el_s for answer in answers]),
    }


def num_good(answers: Sequence[Answer], bounds_ms: Mapping[str, float]) -> int:
    """Answers within all bounds; those of one token have no time per token to exceed."""
    return sum(
        all((getattr(answer, f"{name}_s") or 0.0) * MS <= bound for name, bound in bounds_ms.items())
        for answer in answers
    )


def peak_output(answers: Sequence[Answer]) -> float:
    """Tokens in the best second, counting seconds from the first request. A request's events share its tokens."""
    if not any(answer.event_times for answer in answers):
        return 0.0
    began = min(answer.started_at for answer in answers)
    seconds = np.concatenate([np.array(answer.event_times) - began for answer in answers]).astype(np.int64)
    num_events = [len(answer.event_times) for answer in answers]
    per_event = [answer.num_output_tokens / max(count, 1) for answer, count in zip(answers, num_events, strict=True)]
    weights = np.repeat(per_event, num_events)
    return float(np.bincount(seconds, weights).max())


def peak_concurrency(answers: Sequence[Answer]) -> int:
    """Most requests that were under way at the same time."""
    starts = [(answer.started_at, 1) for answer in answers]
    ends = [(answer.last_at, -1) for answer in answers]
    # One that ends when another begins was not beside it.
    changes = [change for _, change in sorted(starts + ends)]
    return int(np.cumsum(changes).max(initial=0))


def _statistics(name: str, values_s: Floats, percents: Sequence[float]) -> Report:
    """mean, median, std and percentiles in ms; None where there is nothing to tell of"""
    names = [f"mean_{name}_ms", f"median_{name}_ms", f"std_{name}_ms", *(f"p{each:g}_{name}_ms" for each in percents)]
    if len(values_s) == 0:
        return dict.fromkeys(names)
    values = values_s * MS
    figures = [values.mean(), np.median(values), values.std(), *np.percentile(values, percents)]
    return {each: float(figure) for each, figure in zip(names, figures, strict=True)}

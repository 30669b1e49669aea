"""The figures of a run, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.bench.serving.answer import Answer
from pagoda.bench.serving.load import arrivals
from pagoda.bench.serving.report import Run, details, make_report, peak_concurrency
from pagoda.bench.serving.table import format_report


def answer(started_at: float, *times: float, num_tokens: int, num_prompt: int = 10) -> Answer:
    made = Answer(started_at)
    for number, time in enumerate(times):
        reason = '"length"' if number == len(times) - 1 else "null"
        made.receive(200, b'data: {"choices": [{"text": "x", "finish_reason": %b}]}\n\n' % reason.encode(), time)
    usage = b'{"prompt_tokens": %d, "completion_tokens": %d}' % (num_prompt, num_tokens)
    made.receive(200, b'data: {"choices": [], "usage": %b}\n\n' % usage, times[-1])
    made.end(200)
    assert made.is_ok
    return made


def failed(reason: str) -> Answer:
    made = Answer(0.0)
    made.fail(reason)
    return made


# Of three events each; the second one's hold two tokens each.
ANSWERS = [
    answer(0.0, 1.0, 1.5, 3.0, num_tokens=3),
    answer(1.0, 1.5, 2.0, 3.5, num_tokens=6),
    failed("HTTP 429: full"),
    failed("HTTP 429: full"),
    failed("no end after 3 s"),
]
RUN = Run(ANSWERS, duration_s=4.0, cpu_s=0.002)


def test_by_hand() -> None:
    report = make_report(RUN, [50, 99], {})
    assert (report["completed"], report["failed"], report["duration"]) == (2, 3, 4.0)
    assert report["failures"] == {"HTTP 429: full": 2, "no end after 3 s": 1}
    assert (report["total_input_tokens"], report["total_output_tokens"]) == (20, 9)
    assert report["total_cached_tokens"] is None
    assert report["request_throughput"] == 0.5
    assert report["output_throughput"] == 9 / 4
    assert report["total_token_throughput"] == 29 / 4
    assert report["request_goodput"] is None
    assert report["tokens_per_event"] == 9 / 6
    assert report["client_cpu_us_per_token"] == pytest.approx(2000 / 9)
    assert report["client_cpu_share"] == 0.0005
    assert (report["mean_ttft_ms"], report["median_ttft_ms"], report["std_ttft_ms"]) == (750, 750, 250)
    assert report["p99_ttft_ms"] == pytest.approx(995)
    assert report["mean_tpot_ms"] == pytest.approx((1000 + 400) / 2)
    assert (report["mean_itl_ms"], report["p50_itl_ms"]) == (1000, 1000)
    assert report["mean_e2el_ms"] == 2750
    # In the second from 1.0: two tokens of the first request, two of the second.
    assert report["max_output_tokens_per_s"] == 4
    assert report["max_concurrent_requests"] == 2


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [({"ttft": 1000}, 2), ({"ttft": 999}, 1), ({"tpot": 400}, 1), ({"e2el": 2500, "ttft": 499}, 0)],
)
def test_goodput(bounds: dict[str, float], expected: int) -> None:
    assert make_report(RUN, [99], bounds)["request_goodput"] == expected / 4


def test_one_token_keeps_any_bound_of_the_time_per_token() -> None:
    run = Run([answer(0.0, 1.0, num_tokens=1)], 1.0, 0.0)
    report = make_report(run, [99], {"tpot": 0})
    assert report["request_goodput"] == 1.0
    assert report["mean_tpot_ms"] is None


def test_requests_in_turn_are_not_beside_each_other() -> None:
    assert peak_concurrency([answer(0.0, 1.0, num_tokens=1), answer(1.0, 2.0, num_tokens=1)]) == 1
    assert peak_concurrency([]) == 0


def test_the_table_says_the_same() -> None:
    lines = format_report(make_report(RUN, [50, 99.9], {"ttft": 999}), ["ttft", "e2el"], [50, 99.9]).splitlines()
    assert "  2 x HTTP 429: full" in lines
    figures = dict(line.rsplit(maxsplit=1) for line in lines if ":  " in line)
    assert figures["Output token throughput (tok/s):"] == "2.25"
    assert figures["Request goodput (req/s):"] == "0.25"
    assert figures["Mean TTFT (ms):"] == "750.00"
    assert figures["P99.9 E2EL (ms):"] == "2999.50"
    assert not any("ITL" in line for line in lines)


def test_nothing_but_failures() -> None:
    report = make_report(Run([failed("no")], 1.0, 0.1), [99], {"ttft": 1})
    assert report["completed"] == 0
    assert report["max_output_tokens_per_s"] == 0.0
    assert report["p99_ttft_ms"] is None
    assert "Mean TTFT (ms):                          -" in format_report(report, ["ttft"], [99])
    assert details([failed("no")])["ttfts"] == [None]


@pytest.mark.parametrize("burstiness", [1.0, 0.25, 4.0])
def test_arrivals(burstiness: float) -> None:
    times = arrivals(20_000, 50.0, burstiness, seed=3)
    gaps = np.diff([0.0, *times])
    assert times[-1] == pytest.approx(400)
    assert gaps.min() >= 0
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    assert arrivals(20_000, 50.0, burstiness, seed=3) == times


def test_regular_arrivals_and_all_at_once() -> None:
    assert arrivals(4, 2.0, float("inf"), seed=0) == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert arrivals(3, float("inf"), 1.0, seed=0) == [0.0] * 3

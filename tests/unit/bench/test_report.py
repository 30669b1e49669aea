"""The figures of the report, on cases that are computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pagoda.bench.scheduler.fairness import fairness, jain_index
from pagoda.bench.scheduler.histogram import Histogram
from pagoda.bench.scheduler.options import SimulationOptions
from pagoda.bench.scheduler.recorder import Recorder
from pagoda.bench.scheduler.report import Objectives, make_report, num_good, percentiles
from pagoda.bench.scheduler.simulation import Simulation
from pagoda.bench.scheduler.table import format_report
from pagoda.bench.scheduler.trace import TraceRequest

# One row: the second request waits for the first. A step takes half a second.
OPTIONS = SimulationOptions(
    num_blocks=64, max_model_len=512, max_num_seqs=1, max_num_batched_tokens=64, transport_us=0.0, max_plans_in_flight=1
)
TRACE = [TraceRequest(0.0, 32, 3), TraceRequest(0.25, 48, 1), TraceRequest(0.25, 600, 1)]


@pytest.fixture
def simulation(run_simulation: Callable[..., Simulation]) -> Simulation:
    return run_simulation(OPTIONS, trace=TRACE, step_s=0.5)


def test_two_requests_by_hand(simulation: Simulation) -> None:
    """Tokens at 0.5, 1.0, 1.5 and 2.0; the third request is too long for the model."""
    report = make_report(simulation, Objectives(ttft_s=1.0), {}, real_s=4.0)
    assert report["requests"] == {
        "not_sent": 0,
        "unfinished": 0,
        "finished": 2,
        "refused": 1,
        "failed": 0,
        "deadline_misses": 0,
        "duration_s": 2.0,
    }
    assert report["errors"] == {"INVALID_ARGUMENT CONTEXT_LENGTH_EXCEEDED": 1}
    assert report["throughput"] == {
        "request_throughput": 1.0,
        "request_goodput": 0.5,
        "output_throughput": 2.0,
        "total_token_throughput": (32 + 48 + 4) / 2,
    }
    latency = report["latency"]
    assert latency["ttft_ms"] == pytest.approx({"mean": 1125, "p50": 1125, "p90": 1625, "p99": 1737.5, "max": 1750})
    assert latency["e2el_ms"] == pytest.approx({"mean": 1625, "p50": 1625, "p90": 1725, "p99": 1747.5, "max": 1750})
    assert latency["queue_ms"]["max"] == 1250
    assert latency["tpot_ms"]["max"] == 500
    assert latency["itl_ms"] == pytest.approx(dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 500), rel=0.01)
    assert report["cells"]["steps"] == 4
    assert report["cells"]["running_max"] == 1
    assert report["real"]["simulated_seconds_per_second"] == simulation.now / 4


def test_the_table_says_the_same(simulation: Simulation) -> None:
    lines = format_report(make_report(simulation, Objectives(), {}, real_s=4.0)).splitlines()
    assert "  finished                                  2" in lines
    assert [line.split() for line in lines if "end to end" in line] == [
        ["end", "to", "end", "1,625", "1,625", "1,725", "1,748", "1,750"]
    ]
    assert any("INVALID_ARGUMENT CONTEXT_LENGTH_EXCEEDED" in line for line in lines)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (Objectives(), 2),
        (Objectives(ttft_s=1.75), 2),
        (Objectives(ttft_s=1.7), 1),
        (Objectives(itl_s=0.49), 1),  # The other has but one token.
        (Objectives(tpot_s=0.51), 2),
        (Objectives(e2el_s=1.6), 1),
        (Objectives(ttft_s=1.7, itl_s=0.49), 0),
    ],
)
def test_goodput(simulation: Simulation, objectives: Objectives, expected: int) -> None:
    assert num_good(simulation.recorder, objectives) == expected


def test_a_run_in_which_all_are_refused(run_simulation: Callable[..., Simulation]) -> None:
    simulation = run_simulation(replace(OPTIONS), trace=[TraceRequest(1.0, 600, 1)])
    report = make_report(simulation, Objectives(), {}, real_s=1.0)
    assert report["throughput"]["request_throughput"] is None
    assert report["latency"]["ttft_ms"] == {}
    assert "time to first token" in format_report(report)


def test_percentiles() -> None:
    values = np.array([4.0, 1.0, 2.0, 3.0, 5.0])
    assert percentiles(values, 10.0) == pytest.approx({"mean": 30, "p50": 30, "p90": 46, "p99": 49.6, "max": 50})
    assert percentiles(np.array([]), 1.0) == {}


def test_histogram_is_within_a_percent() -> None:
    values = np.random.default_rng(0).lognormal(-3, 1.5, 20_000)
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add_all(part)
    assert len(histogram) == 20_000
    assert histogram.mean == pytest.approx(values.mean())
    assert histogram.max == values.max()
    for percent in (1, 50, 90, 99, 100):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(values, percent), rel=0.01)
    seconds, shares = histogram.cdf()
    assert shares[-1] == 1.0
    assert shares[np.searchsorted(seconds, 0.05)] == pytest.approx((values < 0.05).mean(), abs=0.01)


def test_histogram_of_nothing_but_zeros() -> None:
    histogram = Histogram()
    for _ in range(5):
        histogram.add(0.0)
    assert histogram.percentile(50) == 0.0


def test_jain_index() -> None:
    assert jain_index([3, 3, 3]) == pytest.approx(1)
    assert jain_index([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain_index([1, 2]) == pytest.approx(0.9)


def recorded(service: list[tuple[float, float]], backlog: list[tuple[int, int]]) -> Recorder:
    recorder = Recorder([TraceRequest(0.0, 1, 1, client_id=name) for name in ("a", "b")])
    for number, (each_service, each_backlog) in enumerate(zip(service, backlog, strict=True)):
        recorder.service[:] = each_service
        recorder.backlog[:] = each_backlog
        recorder.sample(number * 0.5, 0, 0, 0.0)
    return recorder


def test_clients_are_compared_while_they_wait() -> None:
    # What b gets before a waits, and after, is nobody's loss.
    service = [(0.0, 0.0), (0.0, 90.0), (10.0, 95.0), (20.0, 100.0), (20.0, 100.0), (20.0, 180.0)]
    backlog = [(0, 5), (1, 5), (1, 5), (1, 5), (0, 5), (0, 5)]
    found = fairness(recorded(service, backlog), {})
    assert found.shares == {"a": 0.1, "b": 0.9}
    assert found.backlogged_shares == pytest.approx({"a": 20 / 30, "b": 10 / 30})
    assert found.backlogged_s == 1.0
    assert found.max_difference == 20 - 10
    assert found.jain_index == pytest.approx((20 + 10) ** 2 / (2 * (20**2 + 10**2)))
    # As a has twice the weight, it has got what it should.
    weighted = fairness(recorded(service, backlog), {"a": 2.0})
    assert weighted.max_difference == 0
    assert weighted.jain_index == pytest.approx(1.0)


def test_clients_that_never_wait_together_are_not_compared() -> None:
    found = fairness(recorded([(0.0, 0.0), (5.0, 0.0), (5.0, 5.0)], [(1, 0), (1, 0), (0, 1)]), {})
    assert (found.max_difference, found.jain_index, found.backlogged_s) == (None, None, 0.0)
    assert found.backlogged_shares == {}

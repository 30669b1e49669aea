"""What a run is worth, as numbers: latencies, throughput, goodput, cache, refusals, fairness, and the core's own time.

Latencies are of the requests that finished, in virtual milliseconds; names are those of `vllm bench serve` where it has
one. Time between tokens comes from a histogram with buckets of 1 %; the other percentiles are exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagoda.bench.scheduler.fairness import fairness
from pagoda.bench.scheduler.histogram import Histogram
from pagoda.bench.scheduler.recorder import Fate, Recorder
from pagoda.bench.scheduler.simulation import Simulation

PERCENTS = (50, 90, 99)
MS, US = 1e3, 1e6

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Objectives:
    """Upper bounds in seconds that a good request keeps; None: any."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    """Mean time per token after the first."""
    itl_s: float | None = None
    """Every time between two tokens."""
    e2el_s: float | None = None


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of the finished requests; parallel, except for tpot_s, which one-token answers do not have."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    e2el_s: NDArray[np.float64]
    queue_s: NDArray[np.float64]

    @classmethod
    def of(cls, recorder: Recorder) -> Latencies:
        done = recorder.fate == Fate.FINISHED
        sent = recorder.sent_s[done]
        tpot = _tpot(recorder)[done]
        return cls(
            ttft_s=recorder.first_token_s[done] - sent,
            tpot_s=tpot[~np.isnan(tpot)],
            e2el_s=recorder.ended_s[done] - sent,
            queue_s=recorder.admitted_s[done] - sent,
        )


def make_report(simulation: Simulation, objectives: Objectives, weights: Mapping[str, float], real_s: float) -> Report:
    """The parts of it, each a dictionary of numbers. real_s: how long the run took"""
    recorder = simulation.recorder
    return {
        "requests": _requests(recorder),
        "throughput": _throughput(recorder, objectives),
        "latency": _latency(recorder),
        "cells": _cells(simulation),
        "moves": _moves(simulation),
        "errors": dict(sorted(recorder.errors.items())),
        "fairness": _fairness(recorder, weights),
        "real": _real(simulation, real_s),
    }


def duration_s(recorder: Recorder) -> float:
    """From the first request that was sent to the last that ended."""
    return float(np.nanmax(recorder.ended_s) - np.nanmin(recorder.sent_s))


def num_good(recorder: Recorder, objectives: Objectives) -> int:
    """Requests that finished within the objectives."""
    good = recorder.fate == Fate.FINISHED
    bounded = (
        (recorder.first_token_s - recorder.sent_s, objectives.ttft_s),
        (_tpot(recorder), objectives.tpot_s),
        (recorder.longest_gap_s, objectives.itl_s),
        (recorder.ended_s - recorder.sent_s, objectives.e2el_s),
    )
    for values, bound in bounded:
        if bound is not None:
            # nan, of answers of one token, keeps any bound.
            good &= ~(values > bound)
    return int(good.sum())


def percentiles(values: NDArray[np.float64], scale: float) -> dict[str, float]:
    """mean, percentiles, max of `values`, times `scale`; empty for no values."""
    if len(values) == 0:
        return {}
    points = np.percentile(values, PERCENTS)
    named = {f"p{percent}": float(point * scale) for percent, point in zip(PERCENTS, points, strict=True)}
    return {"mean": float(values.mean() * scale), **named, "max": float(values.max() * scale)}


def _requests(recorder: Recorder) -> Report:
    counts = {fate.name.lower(): int((recorder.fate == fate).sum()) for fate in Fate}
    missed = sum(count for error, count in recorder.errors.items() if error.startswith("DEADLINE_EXCEEDED"))
    return {**counts, "deadline_misses": missed, "duration_s": duration_s(recorder)}


def _throughput(recorder: Recorder, objectives: Objectives) -> Report:
    duration = duration_s(recorder)
    num_finished = int((recorder.fate == Fate.FINISHED).sum())
    num_output = int(recorder.num_output_tokens.sum())
    num_prompt = int(recorder.num_prompt_tokens[~np.isnan(recorder.admitted_s)].sum())
    values = {
        "request_throughput": num_finished,
        "request_goodput": num_good(recorder, objectives),
        "output_throughput": num_output,
        "total_token_throughput": num_prompt + num_output,
    }
    return {name: value / duration if duration else None for name, value in values.items()}


def _latency(recorder: Recorder) -> Report:
    latencies = Latencies.of(recorder)
    return {
        "ttft_ms": percentiles(latencies.ttft_s, MS),
        "tpot_ms": percentiles(latencies.tpot_s, MS),
        "itl_ms": _histogram_percentiles(recorder.gaps, MS),
        "e2el_ms": percentiles(latencies.e2el_s, MS),
        "queue_ms": percentiles(latencies.queue_s, MS),
    }


def _cells(simulation: Simulation) -> Report:
    counters = [cell.scheduler.counters for cell in simulation.cells]

    def total(name: str) -> int:
        return sum(getattr(each, name) for each in counters)

    timeline = simulation.recorder.timeline
    queries = total("prefix_cache_queries")
    return {
        "prefix_hit_rate": total("prefix_cache_hits") / queries if queries else None,
        "kv_use_mean": float(np.mean(timeline.kv_use)),
        "kv_use_max": float(np.max(timeline.kv_use)),
        "running_mean": float(np.mean(timeline.num_running)),
        "running_max": int(np.max(timeline.num_running)),
        "waiting_mean": float(np.mean(timeline.num_waiting)),
        "waiting_max": int(np.max(timeline.num_waiting)),
        "preemptions": total("preemptions"),
        "recoveries": total("recoveries"),
        "offloaded_blocks": total("offloaded_blocks"),
        "loaded_blocks": total("loaded_blocks"),
        "executors_lost": simulation.num_lost,
        "steps": sum(cell.num_plans for cell in simulation.cells),
    }


def _moves(simulation: Simulation) -> Report:
    """Of requests from one executor to another."""
    counters = [cell.scheduler.counters for cell in simulation.cells]
    num_done = sum(each.moves_done for each in counters)
    wait_s = sum(each.move_wait_s for each in counters)
    return {
        "remote_prefills": sum(each.remote_prefills for each in counters),
        "local_prefills": sum(each.local_prefills for each in counters),
        "moves_done": num_done,
        "moves_failed": sum(each.moves_failed for each in counters),
        "moved_bytes": round(sum(each.moved_blocks for each in counters) * simulation.block_bytes),
        "wait_mean_ms": wait_s / num_done * MS if num_done else None,
        **{f"busy_{name}": share for name, share in _busy(simulation).items()},
    }


def _busy(simulation: Simulation) -> dict[str, float]:
    """Which share of their time the executors that are left compute, by role."""
    busy_s, there_s = defaultdict[str, float](float), defaultdict[str, float](float)
    for lane in (lane for cell in simulation.cells for lane in cell.lanes.values()):
        name = lane.role.name.lower()
        busy_s[name] += lane.busy_s
        there_s[name] += simulation.now - lane.joined_at
    return {name: busy_s[name] / there_s[name] for name in there_s if there_s[name]}


def _fairness(recorder: Recorder, weights: Mapping[str, float]) -> Report:
    found = fairness(recorder, weights)
    return {
        "shares": found.shares,
        "backlogged_shares": found.backlogged_shares,
        "max_difference": found.max_difference,
        "jain_index": found.jain_index,
        "backlogged_s": found.backlogged_s,
    }


def _real(simulation: Simulation, real_s: float) -> Report:
    core = simulation.core_time
    calls = {"submit": core.submit, "commit": core.commit, "step": core.step, "settle": core.settle}
    num_plans = sum(cell.num_plans for cell in simulation.cells)
    planning_s = core.commit.sum + core.step.sum + core.settle.sum
    return {
        "seconds": real_s,
        "simulated_seconds_per_second": simulation.now / real_s,
        "core_us_per_plan": planning_s * US / num_plans if num_plans else None,
        **{f"{name}_us": _histogram_percentiles(durations, US) for name, durations in calls.items()},
    }


def _histogram_percentiles(histogram: Histogram, scale: float) -> dict[str, float]:
    if len(histogram) == 0:
        return {}
    named = {f"p{percent}": histogram.percentile(percent) * scale for percent in PERCENTS}
    return {"mean": histogram.mean * scale, **named, "max": histogram.max * scale}


def _tpot(recorder: Recorder) -> NDArray[np.float64]:
    """[num_requests]; nan where there is not a second token"""
    num_gaps = recorder.num_output_tokens - 1
    spans = recorder.last_token_s - recorder.first_token_s
    return np.where(num_gaps > 0, spans / np.maximum(num_gaps, 1), np.nan)

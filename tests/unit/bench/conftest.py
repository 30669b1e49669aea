"""Simulations small enough to be computed by hand, and a server to send requests to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# The helpers of these tests (fake_openai) stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

from fake_openai import FakeOpenAI, running

from pagoda.bench.scheduler.cost import CostModel
from pagoda.bench.scheduler.options import SimulationOptions
from pagoda.bench.scheduler.recorder import Fate
from pagoda.bench.scheduler.simulation import Simulation
from pagoda.bench.scheduler.trace import TraceRequest
from pagoda.bench.scheduler.workload import generate


def constant_cost(step_s: float) -> CostModel:
    """Every step takes as long as any other."""
    return CostModel(0, 0, 0, 0, 1, 1, 1, step_overhead_s=step_s)


def simulate(
    options: SimulationOptions, *, trace: list[TraceRequest] | None = None, step_s: float | None = None, **changes: Any
) -> Simulation:
    """A finished run. step_s: of every step; None: as the preset says. changes: to the cluster."""
    if step_s is not None:
        changes["cost"] = constant_cost(step_s)
    cluster = replace(options.cluster, **changes)
    simulation = Simulation(cluster, trace or generate(options, options.lane.model.max_model_len))
    simulation.run()
    check(simulation)
    return simulation


def check(simulation: Simulation) -> None:
    """Every request was sent and has ended (once: the recorder sees to that), and the cores are as they should be."""
    fates = set(simulation.recorder.fate.tolist())
    assert fates <= {Fate.FINISHED, Fate.REFUSED, Fate.FAILED}
    for cell in simulation.cells:
        assert cell.scheduler.requests == {}
        assert cell.scheduler.check_integrity() == []


@pytest.fixture
def run_simulation() -> Callable[..., Simulation]:
    return simulate


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with running() as server:
        yield server

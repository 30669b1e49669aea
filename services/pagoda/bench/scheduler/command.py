"""Runs the simulation that the options describe and tells what came of it."""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pagoda.bench.circumstances import circumstances
from pagoda.bench.scheduler.options import SimulationOptions
from pagoda.bench.scheduler.plot import write_plot
from pagoda.bench.scheduler.report import Report, make_report
from pagoda.bench.scheduler.simulation import Simulation
from pagoda.bench.scheduler.table import format_report
from pagoda.bench.scheduler.trace import TraceRequest, read_trace, write_trace
from pagoda.bench.scheduler.workload import generate
from pagoda.scheduler.core.policies import parse_weights


def main(options: SimulationOptions) -> int:
    """Raises InvalidArgumentError for a trace that is none, OSError for files that cannot be read or written."""
    trace = read_trace(options.trace) if options.trace else generate(options, options.lane.model.max_model_len)
    if options.save_trace:
        write_trace(options.save_trace, trace)
    print(_headline(options, trace))
    simulation, report = run(options, trace)
    print(format_report(report))
    if options.json:
        options.json.write_text(json.dumps({"options": _plain(options), **report}, indent=2) + "\n")
    if options.plot:
        write_plot(options.plot, simulation.recorder, _headline(options, trace))
    return 0


def run(options: SimulationOptions, trace: list[TraceRequest]) -> tuple[Simulation, Report]:
    simulation = Simulation(options.cluster, trace)
    # The blocks of thousands of executors are in this one process: looking for garbage among them would stall the core.
    gc.collect()
    gc.freeze()
    began = time.perf_counter()
    # Silent where nobody watches.
    with tqdm(total=len(trace), unit="request", leave=False, disable=None) as progress:
        simulation.run(on_end=progress.update)
    real_s = time.perf_counter() - began
    gc.unfreeze()
    return simulation, make_report(simulation, options.objectives, parse_weights(options.client_weights), real_s)


def _headline(options: SimulationOptions, trace: list[TraceRequest]) -> str:
    source = f"requests of {options.trace}" if options.trace else f"generated requests, seed {options.seed}"
    return f"{options.cells} x {_executors(options)} x {options.preset}, {len(trace):,} {source}; {circumstances()}"


def _executors(options: SimulationOptions) -> str:
    roles = Counter(role.name.lower() for role in options.roles)
    if roles.keys() == {"mixed"}:
        return str(roles["mixed"])
    return "(" + " + ".join(f"{count} {role}" for role, count in roles.items()) + ")"


def _plain(options: SimulationOptions) -> dict[str, Any]:
    """What JSON can hold."""
    values = dataclasses.asdict(options)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

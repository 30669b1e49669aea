"""The report as a picture: latencies, load, KV use and service over time. Needs matplotlib (the extra `bench`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pagoda.bench.scheduler.recorder import Recorder
from pagoda.bench.scheduler.report import Latencies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")
# More clients than this are not told apart by their colours.
_MAX_LEGEND = 10


def check_plot(path: Path) -> None:
    """Raises ValueError where no plot could be written to `path`."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"plot: {path} must end with one of {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise ValueError("plot needs matplotlib, which comes with the extra bench: pip install 'pagoda[bench]'")


def write_plot(path: Path, recorder: Recorder, title: str) -> None:
    # Without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title, fontsize=10)
    (latency, load), (memory, service) = figure.subplots(2, 2)
    _plot_latency(latency, recorder)
    _plot_load(load, recorder)
    _plot_memory(memory, recorder)
    _plot_service(service, recorder)
    figure.savefig(path)


def _plot_latency(axes: Axes, recorder: Recorder) -> None:
    latencies = Latencies.of(recorder)
    named = {
        "queue wait": latencies.queue_s,
        "time to first token": latencies.ttft_s,
        "end to end": latencies.e2el_s,
    }
    for label, values in named.items():
        if len(values):
            axes.step(np.sort(values), np.arange(1, len(values) + 1) / len(values), where="post", label=label)
    if len(recorder.gaps):
        axes.step(*recorder.gaps.cdf(), where="post", label="between tokens")
    axes.set(xscale="log", xlabel="seconds", ylabel="share of requests, tokens", title="Latency", ylim=(0, 1))
    if axes.lines:
        axes.legend(fontsize=8)


def _plot_load(axes: Axes, recorder: Recorder) -> None:
    timeline = recorder.timeline
    axes.plot(timeline.times_s, timeline.num_running, label="running")
    axes.plot(timeline.times_s, timeline.num_waiting, label="waiting")
    axes.set(xlabel="seconds", ylabel="requests", title="Load")
    axes.legend(fontsize=8)


def _plot_memory(axes: Axes, recorder: Recorder) -> None:
    timeline = recorder.timeline
    axes.plot(timeline.times_s, np.array(timeline.kv_use) * 100)
    axes.set(xlabel="seconds", ylabel="% of the blocks", title="KV cache held by running requests", ylim=(0, 100))


def _plot_service(axes: Axes, recorder: Recorder) -> None:
    timeline = recorder.timeline
    service = np.array(timeline.service)
    for index, client in enumerate(recorder.clients):
        axes.plot(timeline.times_s, service[:, index], label=client or "all")
    axes.set(xlabel="seconds", ylabel="weighted tokens", title="Service: prompt tokens computed + 2 x generated")
    if len(recorder.clients) <= _MAX_LEGEND:
        axes.legend(fontsize=8)

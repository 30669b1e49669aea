"""What prefill and decode executors make of links that are too slow for their prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pagoda.bench.scheduler.options import SimulationOptions
from pagoda.bench.scheduler.simulation import Simulation
from pagoda.scheduler.core.links import Links

# The keys and values of all prompts are 4.7 GB/s.
LONG_PROMPTS = SimulationOptions(
    num_prompts=200,
    length_distribution="lognormal",
    length_cv=0.5,
    random_input_len=4000,
    random_output_len=100,
    request_rate=9.0,
    prefill_executors=1,
    decode_executors=1,
)


class Measured:
    def __init__(self, simulation: Simulation) -> None:
        recorder, counters = simulation.recorder, simulation.cells[0].scheduler.counters
        self.ttft_s = float(np.mean(recorder.first_token_s - recorder.sent_s))
        self.e2el_s = float(np.mean(recorder.ended_s - recorder.sent_s))
        self.num_remote = counters.remote_prefills
        self.num_failed = counters.moves_failed


Both = Callable[[float], tuple[Measured, Measured]]


@pytest.fixture
def measure(run_simulation: Callable[..., Simulation], monkeypatch: pytest.MonkeyPatch) -> Both:
    """(without, with what is learned of links) at so many GB/s."""

    def measure(gb_per_s: float) -> tuple[Measured, Measured]:
        options = replace(LONG_PROMPTS, transfer_gb_per_s=gb_per_s)
        after = Measured(run_simulation(options))
        with monkeypatch.context() as patch:
            patch.setattr(Links, "detour", lambda *_: lambda *_: 0)
            return Measured(run_simulation(options)), after

    return measure


def test_over_a_slow_link_prompts_stay(measure: Both) -> None:
    before, after = measure(1.0)
    assert after.ttft_s < before.ttft_s / 2
    assert after.e2el_s < before.e2el_s * 0.8
    assert 0 < after.num_remote < before.num_remote
    assert after.num_failed < before.num_failed / 2


def test_over_a_fast_link_nothing_changes(measure: Both) -> None:
    before, after = measure(50.0)
    assert abs(after.num_remote - before.num_remote) <= 2
    assert after.ttft_s == pytest.approx(before.ttft_s, rel=0.02)
    assert after.e2el_s == pytest.approx(before.e2el_s, rel=0.02)

"""The event loop around the real core: order and time of steps, overload, fairness, failure, scale."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pagoda.bench.scheduler.cell import Lane
from pagoda.bench.scheduler.command import run
from pagoda.bench.scheduler.executor import CountingExecutor
from pagoda.bench.scheduler.fairness import fairness
from pagoda.bench.scheduler.options import SimulationOptions
from pagoda.bench.scheduler.recorder import Fate
from pagoda.bench.scheduler.report import make_report
from pagoda.bench.scheduler.simulation import Moment, Simulation
from pagoda.bench.scheduler.trace import TraceRequest
from pagoda.bench.scheduler.workload import generate
from pagoda.scheduler.core.plan import RowStart, StepPlan
from pagoda.scheduler.core.request import Sampling
from pagoda.scheduler.core.spec import ExecutorRole

Run = Callable[..., Simulation]

SMALL = SimulationOptions(
    num_blocks=1024,
    block_size=16,
    max_model_len=1024,
    max_num_seqs=16,
    max_num_batched_tokens=256,
    transport_us=0.0,
    inter_token_target_ms=0.0,
)


def test_steps_of_a_lane_run_one_after_the_other(run_simulation: Run) -> None:
    lane = Lane("a", SMALL.lane, replace(SMALL.cost_model, step_overhead_s=1.0, memory_bandwidth=1e30, flop_rate=1e30))
    lane.run(StepPlan(1, started_rows=[RowStart(0, array("I", [1, 2]), 1, [0, 1, 2, 3], Sampling())]), 10.0)
    assert lane.busy_until == pytest.approx(11.0)
    lane.run(StepPlan(2), 10.25)
    assert lane.busy_until == pytest.approx(12.0)
    lane.run(StepPlan(3), 20.0)
    assert lane.busy_until == pytest.approx(21.0)


@pytest.mark.parametrize(
    ("num_plans", "gap_s"),
    [(1, 0.5 + 2 * 0.125), (2, 0.5)],
    ids=["the executor waits for each plan", "the next plan is there in time"],
)
def test_plans_in_flight_hide_transport(run_simulation: Run, num_plans: int, gap_s: float) -> None:
    options = replace(SMALL, max_plans_in_flight=num_plans, transport_us=125_000.0)
    # The second request only wakes the scheduler, while the first step is under way.
    trace = [TraceRequest(0.0, 32, 8), TraceRequest(0.25, 32, 8)]
    recorder = run_simulation(options, trace=trace, step_s=0.5).recorder
    assert recorder.first_token_s[0] == 0.125 + 0.5 + 0.125
    assert recorder.ended_s[0] == 0.75 + 7 * gap_s
    assert recorder.longest_gap_s[0] == gap_s


def test_one_request_takes_as_many_steps_as_it_should(run_simulation: Run) -> None:
    # 600 prompt tokens in chunks of 256, then 9 more steps.
    simulation = run_simulation(SMALL, trace=[TraceRequest(1.0, 600, 10)], step_s=0.25)
    recorder = simulation.recorder
    assert recorder.admitted_s[0] == 1.0
    assert recorder.first_token_s[0] == 1.0 + 3 * 0.25
    assert recorder.ended_s[0] == 1.0 + 12 * 0.25
    assert recorder.num_output_tokens[0] == 10
    assert simulation.cells[0].num_plans == 12
    assert simulation.cells[0].scheduler.counters.generation_tokens == 10


def test_the_seed_decides_everything() -> None:
    options = replace(
        SMALL,
        cells=2,
        executors_per_cell=2,
        num_prompts=150,
        request_rate=40.0,
        burstiness=0.3,
        length_distribution="lognormal",
        random_input_len=100,
        random_output_len=30,
        random_prefix_len=64,
        num_prefixes=3,
        num_turns=2,
        think_time_s=0.5,
        routing="prefix",
        executor_losses=("1:2",),
        executor_joins=("2:2",),
        scheduling_policy="fair",
        clients=("a:1", "b:3"),
        max_num_waiting=20,
    )
    trace = generate(options, 1024)

    def report(options: SimulationOptions) -> dict[str, object]:
        _, report = run(options, trace)
        del report["real"]
        return report

    first = report(options)
    assert first == report(options)
    assert first != report(replace(options, seed=1)), "another executor dies"


def test_the_next_turn_finds_the_last_one_in_the_cache(run_simulation: Run) -> None:
    options = replace(SMALL, num_prompts=4, num_turns=4, random_input_len=64, random_output_len=32, think_time_s=1.0)
    recorder = run_simulation(options).recorder
    # All that was computed before, which is all but the last token of the answer.
    assert recorder.num_cached_tokens.tolist() == [0, 95, 191, 287]
    assert (np.diff(recorder.sent_s) > 0).all()
    assert (recorder.sent_s[1:] > recorder.ended_s[:-1]).all()
    cold = run_simulation(replace(options, enable_prefix_caching=False)).recorder
    assert cold.num_cached_tokens.tolist() == [0, 0, 0, 0]


def test_a_prefix_is_routed_to_where_it_is(run_simulation: Run) -> None:
    options = replace(
        SMALL,
        cells=8,
        num_prompts=400,
        request_rate=40.0,
        random_prefix_len=256,
        num_prefixes=8,
        random_input_len=32,
        random_output_len=4,
    )
    hits = {}
    for routing in ("round-robin", "prefix"):
        recorder = run_simulation(replace(options, routing=routing)).recorder
        hits[routing] = recorder.num_cached_tokens.sum() / recorder.num_prompt_tokens.sum()
    # At most 256 of 288 tokens; each of 8 cells computes each of 8 prefixes once, or ideally one each.
    assert hits["prefix"] > 0.85 > 0.78 > hits["round-robin"] > 0.6


def test_overload(run_simulation: Run) -> None:
    """Ten times what can be served: who is let in is served soon, all others are told at once."""
    # 16 rows of 11 steps of 50 ms (a prompt and 10 tokens more): 29 requests/s.
    options = replace(
        SMALL,
        num_prompts=60 * 290,
        request_rate=290.0,
        random_input_len=16,
        random_output_len=11,
        max_num_waiting=32,
        sample_interval_s=1.0,
    )
    simulation = run_simulation(options, step_s=0.05)
    recorder = simulation.recorder
    finished, refused = recorder.fate == Fate.FINISHED, recorder.fate == Fate.REFUSED
    assert finished.sum() + refused.sum() == options.num_prompts
    capacity = 16 / (11 * 0.05)
    assert finished.sum() / 60 == pytest.approx(capacity, rel=0.05)
    assert set(recorder.errors) == {"RESOURCE_EXHAUSTED QUEUE_FULL"}
    assert (recorder.ended_s[refused] == recorder.sent_s[refused]).all()
    # At most 32 are in front in the queue, and one generation of rows has to end first.
    latency = recorder.ended_s[finished] - recorder.sent_s[finished]
    assert latency.max() < (32 + 16) / capacity + 2 * 11 * 0.05
    # It does not get worse with time.
    halves = np.array_split(latency, 2)
    assert np.percentile(halves[1], 99) < 1.1 * np.percentile(halves[0], 99)


def test_fair_service_under_overload(run_simulation: Run) -> None:
    """Who sends twenty times as much gets no more: the shares of service are equal."""
    options = replace(
        SMALL,
        num_prompts=20 * 450,
        request_rate=450.0,
        random_input_len=16,
        random_output_len=11,
        max_num_waiting=64,
        clients=("small:1", "big:20"),
        scheduling_policy="fair",
    )
    recorder = run_simulation(options, step_s=0.05).recorder
    found = fairness(recorder, {})
    assert found.backlogged_s > 18
    assert found.backlogged_shares["big"] / found.backlogged_shares["small"] == pytest.approx(1.0, rel=0.05)
    assert found.shares["big"] / found.shares["small"] == pytest.approx(1.0, rel=0.1)
    assert found.jain_index == pytest.approx(1.0, abs=0.001)
    # Without fairness, the queue is the big client's.
    unfair = fairness(run_simulation(replace(options, scheduling_policy="fcfs"), step_s=0.05).recorder, {})
    assert unfair.shares["big"] > 0.9


def test_weights_divide_the_service(run_simulation: Run) -> None:
    options = replace(
        SMALL,
        num_prompts=20 * 300,
        request_rate=300.0,
        random_input_len=16,
        random_output_len=11,
        max_num_waiting=64,
        clients=("a:1", "b:1"),
        client_weights="a=3",
        scheduling_policy="fair",
    )
    recorder = run_simulation(options, step_s=0.05).recorder
    found = fairness(recorder, {"a": 3.0})
    assert found.backlogged_shares["a"] == pytest.approx(0.75, rel=0.02)
    assert found.jain_index == pytest.approx(1.0, abs=0.01)


def test_priorities_go_first(run_simulation: Run) -> None:
    options = replace(
        SMALL,
        num_prompts=600,
        request_rate=60.0,
        random_input_len=16,
        random_output_len=11,
        clients=("now:1:0", "later:9:1"),
        scheduling_policy="priority",
    )
    recorder = run_simulation(options, step_s=0.05).recorder
    waits = [(recorder.admitted_s - recorder.sent_s)[recorder.client == client] for client in (0, 1)]
    assert recorder.clients == ["later", "now"]
    # A row is free every 11 / 16 steps.
    assert waits[1].max() < 0.2 < 5 < waits[0].max()


def test_requests_survive_their_executors(run_simulation: Run) -> None:
    options = replace(
        SMALL,
        cells=2,
        executors_per_cell=2,
        num_prompts=200,
        request_rate=50.0,
        random_input_len=64,
        random_output_len=20,
        executor_losses=("1", "2:2"),
        executor_joins=("3:3",),
    )
    simulation = run_simulation(options, step_s=0.05)
    recorder = simulation.recorder
    assert (recorder.fate == Fate.FINISHED).all()
    assert (recorder.num_output_tokens == 20).all()
    assert simulation.num_lost == 3
    assert sorted(len(cell.lanes) for cell in simulation.cells) == [2, 2]
    assert sum(cell.scheduler.counters.recoveries for cell in simulation.cells) > 0


def test_without_executors_requests_end_all_the_same(run_simulation: Run) -> None:
    options = replace(SMALL, num_prompts=20, request_rate=20.0, random_input_len=16, executor_losses=("0.5",))
    recorder = run_simulation(options, step_s=0.05).recorder
    assert set(recorder.errors) == {"UNAVAILABLE NO_EXECUTOR"}
    # Each has waited for an executor for a minute, and ends with the scheduler's next tick.
    failed = recorder.fate == Fate.FAILED
    assert recorder.ended_s[failed].min() >= 60.5
    assert recorder.ended_s[failed].max() < 63


def test_deadlines(run_simulation: Run) -> None:
    options = replace(SMALL, request_timeout_s=1.5, num_prompts=60, request_rate=float("inf"), random_input_len=16)
    recorder = run_simulation(replace(options, random_output_len=20), step_s=0.05).recorder
    late = recorder.fate == Fate.FAILED
    assert recorder.errors == {"DEADLINE_EXCEEDED DEADLINE_EXCEEDED": int(late.sum())}
    # One generation of 16 rows takes a second: the second one is late.
    assert late.sum() == 60 - 16
    assert recorder.ended_s[late] == pytest.approx([1.5] * int(late.sum()), abs=0.06)
    assert recorder.ended_s[~late].max() == pytest.approx(1.0)


def test_preemption_when_blocks_run_out(run_simulation: Run) -> None:
    options = replace(SMALL, num_blocks=70, num_prompts=16, request_rate=float("inf"), random_output_len=200)
    simulation = run_simulation(replace(options, random_input_len=48), step_s=0.05)
    assert simulation.cells[0].scheduler.counters.preemptions > 0
    assert (simulation.recorder.num_output_tokens == 200).all()
    assert max(simulation.recorder.timeline.kv_use) == pytest.approx(1.0, abs=0.02)


def test_host_memory_costs_time_and_saves_work(run_simulation: Run) -> None:
    """Sessions whose blocks do not all stay in the cache."""
    options = replace(
        SMALL,
        num_blocks=100,
        num_prompts=80,
        num_turns=8,
        request_rate=4.0,
        random_input_len=64,
        random_output_len=32,
    )
    without = run_simulation(options).recorder
    simulation = run_simulation(replace(options, num_host_blocks=1000))
    counters = simulation.cells[0].scheduler.counters
    assert counters.offloaded_blocks > 0
    assert counters.loaded_blocks > 0
    assert simulation.recorder.num_cached_tokens.sum() > without.num_cached_tokens.sum()


def test_the_time_of_the_core_counts_if_wanted() -> None:
    options = replace(SMALL, num_prompts=5, request_rate=1.0, random_input_len=16, random_output_len=10)
    trace = generate(options, 1024)
    ends = []
    for measured in (False, True):
        simulation, report = run(replace(options, measure_overhead=measured), trace)
        ends.append(simulation.recorder.ended_s)
        assert report["requests"]["finished"] == 5
        assert report["real"]["core_us_per_plan"] > 0
    delays = ends[1] - ends[0]
    assert (delays > 0).all()
    # At most what the core took for all requests together.
    assert delays.max() < simulation.now


def test_many_executors(run_simulation: Run) -> None:
    options = replace(
        SMALL,
        cells=16,
        executors_per_cell=16,
        num_prompts=512,
        request_rate=20_000.0,
        random_input_len=32,
        random_output_len=4,
        routing="least-loaded",
        num_blocks=64,
    )
    simulation = run_simulation(options, step_s=0.05)
    recorder = simulation.recorder
    assert (recorder.fate == Fate.FINISHED).all()
    assert [cell.scheduler.counters.requests_finished for cell in simulation.cells] == [32] * 16
    # 2 for each of 256 executors: nobody waits for anybody.
    assert (recorder.ended_s - recorder.sent_s).max() < 0.05 * 6
    report = make_report(simulation, options.objectives, {}, 1.0)
    assert report["cells"]["running_max"] > 400


# One byte per token, 64 of them in a second, and an eighth of a second besides.
POOLS = replace(
    SMALL,
    prefill_executors=1,
    decode_executors=1,
    max_plans_in_flight=1,
    max_local_prefill_tokens=0,
    weight_bytes=1e-30,
    kv_bytes_per_token=1.0,
    flops_per_token=1e-30,
    attention_flops_per_pair=1e-30,
    memory_bandwidth=1e30,
    step_overhead_s=0.25,
    transfer_gb_per_s=64e-9,
    transfer_latency_us=125_000.0,
)


def test_a_request_moves_with_its_blocks(run_simulation: Run) -> None:
    simulation = run_simulation(POOLS, trace=[TraceRequest(0.0, 32, 3)])
    recorder = simulation.recorder
    assert recorder.first_token_s[0] == 0.25
    # Two blocks leave with the next step, and are half a second on their way; then there are two steps more.
    assert recorder.ended_s[0] == pytest.approx(0.25 + 0.5 + 0.125 + 2 * 0.25)
    assert recorder.longest_gap_s[0] == pytest.approx(0.5 + 0.125 + 0.25)
    moves = make_report(simulation, POOLS.objectives, {}, 1.0)["moves"]
    busy = {"busy_prefill": 0.5 / simulation.now, "busy_decode": 0.75 / simulation.now}
    assert moves == pytest.approx(
        {
            "remote_prefills": 1,
            "local_prefills": 0,
            "moves_done": 1,
            "moves_failed": 0,
            "moved_bytes": 32,
            "wait_mean_ms": 625.0,
            **busy,
        }
    )


def test_what_goes_the_same_way_goes_one_after_the_other(run_simulation: Run) -> None:
    recorder = run_simulation(POOLS, trace=[TraceRequest(0.0, 32, 2), TraceRequest(0.0, 64, 2)]).recorder
    assert recorder.first_token_s.tolist() == [0.25, 0.25]
    assert recorder.ended_s == pytest.approx([0.25 + 0.5 + 0.125 + 0.25, 0.25 + 0.5 + 1.0 + 0.125 + 0.25])
    two = replace(POOLS, decode_executors=2)
    recorder = run_simulation(two, trace=[TraceRequest(0.0, 32, 2), TraceRequest(0.0, 64, 2)]).recorder
    # Both still leave the same executor.
    assert recorder.ended_s == pytest.approx([0.25 + 0.5 + 0.125 + 0.25, 0.25 + 0.5 + 1.0 + 0.125 + 0.25])


@pytest.mark.parametrize(
    ("role", "gap_s"),
    [
        # The other one goes on alone, at once.
        ("prefill", 0.5),
        # So it does, and when it has sent the second token it pushes three blocks to the one that joined.
        ("decode", 0.75 + 0.125 + 0.25),
    ],
)
def test_an_executor_dies_with_blocks_on_their_way(run_simulation: Run, role: str, gap_s: float) -> None:
    options = replace(POOLS, executor_losses=(f"0.5:1:{role}",), executor_joins=(f"0.625:1:{role}",))
    simulation = run_simulation(options, trace=[TraceRequest(0.0, 32, 8)])
    counters = simulation.cells[0].scheduler.counters
    assert (simulation.num_lost, counters.recoveries, counters.move_failures) == (1, 1, {"executor_lost": 1})
    assert simulation.recorder.num_output_tokens[0] == 8
    assert simulation.recorder.longest_gap_s[0] == pytest.approx(gap_s)
    assert sorted(lane.role.name for lane in simulation.cells[0].lanes.values()) == ["DECODE", "PREFILL"]


def test_pools_come_and_go(run_simulation: Run) -> None:
    options = replace(
        SMALL,
        prefill_executors=2,
        decode_executors=3,
        executors_per_cell=1,
        num_prompts=400,
        request_rate=60.0,
        random_input_len=200,
        random_output_len=30,
        length_distribution="lognormal",
        num_blocks=160,
        num_turns=2,
        think_time_s=0.2,
        executor_losses=("1:1:prefill", "2:2:decode", "3:2"),
        executor_joins=("2.5:2:decode", "3.5:1:prefill", "4"),
    )
    simulation = run_simulation(options)
    recorder, counters = simulation.recorder, simulation.cells[0].scheduler.counters
    assert (recorder.fate == Fate.FINISHED).all()
    assert simulation.num_lost == 5
    assert counters.remote_prefills > 100
    assert counters.moves_begun == counters.moves_done + counters.moves_failed
    assert counters.moves_failed > 0
    roles = [lane.role for lane in simulation.cells[0].lanes.values()]
    assert len(roles) == 5
    assert ExecutorRole.MIXED in roles


def test_moments_name_a_role() -> None:
    options = replace(SMALL, executor_losses=("1", "2:3"), executor_joins=("4:1:decode",))
    assert options.cluster.losses == (Moment(1.0, 1, None), Moment(2.0, 3, None))
    assert options.cluster.joins == (Moment(4.0, 1, ExecutorRole.DECODE),)


def test_executors_are_not_lost_twice(run_simulation: Run) -> None:
    simulation = run_simulation(
        replace(SMALL, executors_per_cell=2, num_prompts=10, executor_losses=("0.1:5",), executor_joins=("0.2",)),
        step_s=0.05,
    )
    assert simulation.num_lost == 2
    assert (simulation.recorder.fate == Fate.FINISHED).all()
    assert isinstance(next(iter(simulation.cells[0].lanes.values())).executor, CountingExecutor)

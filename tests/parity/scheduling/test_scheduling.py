"""What a request gets does not depend on how it is scheduled: on its neighbours, chunks, preemption, cached prefixes,
forks, host memory, plans in flight, or the loss of an executor. The real core, real executors, and the bytes between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from real_cell import RealCell, Served, Shape
from traffic import MAX_MODEL_LEN, Traffic

from pagoda.scheduler.core.plan import NO_COPIES, BlockCopies, StepPlan

# Little more than the longest request needs.
SMALL = MAX_MODEL_LEN + 16


@dataclass(frozen=True)
class Way:
    """How a cell serves the traffic."""

    happens: str
    """Names of counts that must not be 0 afterwards."""
    max_num_seqs: int = 6
    max_num_batched_tokens: int = 64
    max_plans_in_flight: int = 1
    cache_tokens: int = 4096
    host_tokens: int = 0
    swap_only: bool = False
    enable_prefix_caching: bool = True
    policy: str = "priority"
    tie_window_s: float = 0.0
    num_executors: int = 1
    lose_after: int = 0
    """Turns until the first executor dies; 0: it does not."""

    def cell(self, served: Served, block_size: int, cell_class: type[RealCell] = RealCell) -> RealCell:
        cell = cell_class(
            served,
            max_plans_in_flight=self.max_plans_in_flight,
            enable_prefix_caching=self.enable_prefix_caching,
            policy=self.policy,
            tie_window_s=self.tie_window_s,
        )
        for name in "AB"[: self.num_executors]:
            cell.join(
                name,
                Shape(
                    max_num_seqs=self.max_num_seqs,
                    max_num_batched_tokens=self.max_num_batched_tokens,
                    block_size=block_size,
                    num_blocks=self.cache_tokens // block_size,
                    num_host_blocks=self.host_tokens // block_size,
                    swap_only=self.swap_only,
                ),
            )
        return cell

    @property
    def cannot_happen(self) -> set[str]:
        """Names of counts that must be 0 afterwards."""
        names = {"requests_rejected", "requests_expired"}
        if self.max_plans_in_flight == 1:
            names.add("steps_ahead")
        if not self.enable_prefix_caching:
            names |= {"prefix_cache_hits", "copied_blocks", "merged_blocks"}
        if not self.host_tokens:
            names |= {"offloaded_blocks", "loaded_blocks"}
        if not self.lose_after:
            names.add("recoveries")
        return names


WAYS = {
    "chunks-of-5": Way(
        "full_steps full_batches prefix_cache_hits copied_blocks branches",
        max_num_seqs=4,
        max_num_batched_tokens=5,
    ),
    "chunks-of-13": Way(
        "full_steps full_batches prefix_cache_hits copied_blocks branches steps_ahead",
        max_num_seqs=8,
        max_num_batched_tokens=13,
        max_plans_in_flight=2,
        policy="fcfs",
        tie_window_s=0.005,
    ),
    "chunks-of-64-uncached": Way(
        "full_steps full_batches branches", max_num_seqs=8, enable_prefix_caching=False, policy="fair"
    ),
    "all-at-once": Way(
        "prefix_cache_hits copied_blocks branches steps_ahead",
        max_num_seqs=32,
        max_num_batched_tokens=512,
        max_plans_in_flight=2,
        policy="fair",
    ),
    "all-at-once-uncached": Way(
        "branches steps_ahead",
        max_num_seqs=32,
        max_num_batched_tokens=512,
        max_plans_in_flight=2,
        enable_prefix_caching=False,
        policy="fcfs",
    ),
    "one-row": Way("full_batches prefix_cache_hits copied_blocks", max_num_seqs=1, max_num_batched_tokens=100),
    "recomputed": Way("preemptions prefix_cache_hits copied_blocks", cache_tokens=SMALL),
    "recomputed-two-plans": Way(
        "preemptions prefix_cache_hits copied_blocks steps_ahead",
        max_num_seqs=12,
        max_num_batched_tokens=30,
        max_plans_in_flight=2,
        cache_tokens=SMALL,
        policy="fcfs",
    ),
    "recomputed-uncached": Way(
        "preemptions steps_ahead",
        max_plans_in_flight=2,
        cache_tokens=SMALL,
        enable_prefix_caching=False,
        policy="fair",
    ),
    "swapped": Way(
        "preemptions offloaded_blocks loaded_blocks copied_blocks",
        cache_tokens=SMALL,
        host_tokens=1024,
        swap_only=True,
    ),
    "swapped-two-plans": Way(
        "preemptions offloaded_blocks loaded_blocks copied_blocks steps_ahead",
        max_num_batched_tokens=21,
        max_plans_in_flight=2,
        cache_tokens=SMALL,
        host_tokens=1024,
        swap_only=True,
        policy="fair",
    ),
    "offloaded": Way(
        "preemptions offloaded_blocks loaded_blocks copied_blocks", cache_tokens=SMALL, host_tokens=2048, policy="fcfs"
    ),
    "offloaded-two-plans": Way(
        "preemptions offloaded_blocks loaded_blocks copied_blocks steps_ahead",
        max_num_seqs=12,
        max_plans_in_flight=2,
        cache_tokens=SMALL + 32,
        host_tokens=2048,
    ),
    # So little that its blocks are written again and again.
    "offloaded-to-little": Way(
        "preemptions offloaded_blocks loaded_blocks steps_ahead",
        max_plans_in_flight=2,
        cache_tokens=SMALL,
        host_tokens=80,
    ),
    "an-executor-dies": Way(
        "recoveries prefix_cache_hits copied_blocks steps_ahead",
        max_num_batched_tokens=20,
        max_plans_in_flight=2,
        num_executors=2,
        lose_after=25,
    ),
}

# Model, dtype, block size. In bfloat16 even the bits are the same, for which attention needs blocks of 16 or more.
MODELS = [
    ("chat", "bfloat16", 16),
    ("llama", "float32", 4),
    ("qwen3", "bfloat16", 16),
    ("chat", "float32", 8),
    ("chat", "bfloat16/int8", 16),
]

# Every way on the bundled model, and in turn on one of the others.
RUNS = [(name, *model) for i, name in enumerate(WAYS) for model in (MODELS[0], MODELS[1 + i % 4])]

Fixture = Callable[[str, str], Any]


def serve(requests: Traffic, cell: RealCell, name: str) -> None:
    way = WAYS[name]

    def meanwhile(turn: int) -> None:
        if way.lose_after and turn == way.lose_after:
            cell.lose("A")

    requests.run(cell, seed=list(WAYS).index(name), meanwhile=meanwhile)


@pytest.mark.parametrize(("name", "model", "dtype", "block_size"), RUNS)
def test_as_alone(name: str, model: str, dtype: str, block_size: int, served: Fixture, traffic: Fixture) -> None:
    way, requests = WAYS[name], traffic(model, dtype)
    cell = way.cell(served(model, dtype), block_size)
    serve(requests, cell, name)
    assert requests.differences(cell) == []

    counts = cell.counts
    assert [count for count in way.happens.split() if not counts[count]] == []
    assert {count: counts[count] for count in way.cannot_happen if counts.get(count)} == {}
    for lane in cell.core.lanes.values():
        assert lane.pool.num_free + lane.pool.num_cached == lane.pool.num_blocks
        assert lane.num_free_rows == way.max_num_seqs
        assert way.enable_prefix_caching or lane.pool.num_cached == 0


class WithoutCopies(RealCell):
    """No block is copied within the cache."""

    def encode(self, plan: StepPlan) -> bytes:
        return super().encode(plan._replace(copies=NO_COPIES))


class MixedUpLoads(RealCell):
    """What comes back from host memory goes to the right blocks, but in another order."""

    def encode(self, plan: StepPlan) -> bytes:
        sources, targets = plan.loads
        return super().encode(plan._replace(loads=BlockCopies(sources[::-1], targets)))


@pytest.mark.parametrize(("cell_class", "name"), [(WithoutCopies, "all-at-once"), (MixedUpLoads, "offloaded")])
def test_one_wrong_block_is_noticed(cell_class: type[RealCell], name: str, served: Fixture, traffic: Fixture) -> None:
    model, dtype, block_size = MODELS[0]
    requests = traffic(model, dtype)
    cell = WAYS[name].cell(served(model, dtype), block_size, cell_class)
    serve(requests, cell, name)
    assert requests.differences(cell) != []

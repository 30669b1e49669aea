"""Prompts computed on some executors and continued on others: each request gets the tokens, and the bits, that it gets
alone. The real core, real executors, and real transfers of blocks, through shared memory and by TCP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest
from real_cell import RealCell, Served, Shape
from traffic import MAX_MODEL_LEN, Traffic

from pagoda.scheduler.core.moves import PAUSE_S, Failure, Move
from pagoda.scheduler.core.plan import StepPlan

# Little more than the longest request needs.
SMALL = MAX_MODEL_LEN + 16


@dataclass(frozen=True)
class Pools:
    """A cell with executors "P1", ... that prefill, and "D1", ... that decode."""

    num_prefill: int
    num_decode: int
    transfer: str
    max_num_batched_tokens: int
    max_num_seqs: int = 8
    max_plans_in_flight: int = 1
    decode_tokens: int = 4096
    """In the cache of an executor that decodes."""
    host_tokens: int = 0
    enable_prefix_caching: bool = True
    max_local_prefill_tokens: int = 0
    happens: str = "remote_prefills moves_done moved_blocks branches"
    """Names of counts that must not be 0 afterwards."""

    def cell(self, served: Served, block_size: int, cell_class: type[RealCell] = RealCell) -> RealCell:
        cell = cell_class(
            served,
            max_plans_in_flight=self.max_plans_in_flight,
            enable_prefix_caching=self.enable_prefix_caching,
            max_local_prefill_tokens=self.max_local_prefill_tokens,
        )
        for number in range(self.num_prefill):
            cell.join(f"P{number + 1}", self.shape(block_size, 4096), role="prefill", transfer=self.transfer)
        for number in range(self.num_decode):
            self.join_decode(cell, f"D{number + 1}", block_size)
        return cell

    def join_decode(self, cell: RealCell, name: str, block_size: int) -> None:
        cell.join(name, self.shape(block_size, self.decode_tokens), role="decode", transfer=self.transfer)

    def shape(self, block_size: int, cache_tokens: int) -> Shape:
        return Shape(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size=block_size,
            num_blocks=cache_tokens // block_size,
            num_host_blocks=self.host_tokens // block_size,
        )


POOLS = {
    "1+1-chunks-of-16": Pools(1, 1, "auto", 16),
    "1+1-chunks-of-64-tcp": Pools(1, 1, "tcp", 64, max_plans_in_flight=2),
    "1+1-chunks-of-512": Pools(1, 1, "auto", 512, max_num_seqs=32, max_plans_in_flight=2),
    "2+2-chunks-of-16-tcp": Pools(2, 2, "tcp", 16, max_plans_in_flight=2),
    "2+2-chunks-of-64": Pools(2, 2, "auto", 64),
    "2+2-chunks-of-512-tcp": Pools(2, 2, "tcp", 512, max_num_seqs=32),
    "2+1-uncached": Pools(2, 1, "auto", 64, max_plans_in_flight=2, enable_prefix_caching=False),
    "short-prompts-stay": Pools(
        1, 2, "auto", 64, max_local_prefill_tokens=20, happens="remote_prefills local_prefills moves_done"
    ),
    # A request moves on, where another executor has room for it, before it is preempted.
    "1+2-short-of-blocks": Pools(1, 2, "auto", 64, decode_tokens=SMALL),
    "1+1-short-of-blocks": Pools(1, 1, "auto", 64, decode_tokens=SMALL),
    "1+1-short-of-blocks-offloaded": Pools(
        1,
        1,
        "tcp",
        64,
        max_plans_in_flight=2,
        decode_tokens=SMALL,
        host_tokens=1024,
        max_local_prefill_tokens=20,
        happens="remote_prefills moves_done offloaded_blocks loaded_blocks",
    ),
}

# Model, dtype, block size. In bfloat16 even the bits are the same, for which attention needs blocks of 16 or more.
MODELS = [
    ("chat", "bfloat16", 16),
    ("llama", "float32", 4),
    ("qwen3", "bfloat16", 16),
    ("chat", "bfloat16/int8", 16),
]
CHAT = MODELS[0]

# Every way on the bundled model, and every third on one of the others.
RUNS = [(name, *CHAT) for name in POOLS] + [
    (name, *model) for name, model in zip(list(POOLS)[::3], MODELS[1:], strict=False)
]

Fixture = Callable[[str, str], Any]
MakeCell = Callable[..., RealCell]


@pytest.fixture
def make_cell(served: Fixture) -> Iterator[MakeCell]:
    """Cells whose threads end whatever happens."""
    with ExitStack() as stack:

        def make(name: str, model: tuple[str, str, int] = CHAT, cell_class: type[RealCell] = RealCell) -> RealCell:
            cell = POOLS[name].cell(served(*model[:2]), model[2], cell_class)
            return stack.enter_context(closing(cell))

        yield make


def check(cell: RealCell, requests: Traffic) -> None:
    assert requests.differences(cell) == []
    counts = cell.counts
    assert counts["moves_begun"] == counts["moves_done"] + cell.core.counters.moves_failed
    for lane in cell.core.lanes.values():
        assert not lane.arriving
        assert not lane.lent
        assert lane.pool.num_free + lane.pool.num_cached == lane.pool.num_blocks
        assert lane.num_free_rows == lane.spec.max_num_seqs


@pytest.mark.parametrize(("name", "model", "dtype", "block_size"), RUNS)
def test_as_alone(name: str, model: str, dtype: str, block_size: int, make_cell: MakeCell, traffic: Fixture) -> None:
    requests, cell = traffic(model, dtype), make_cell(name, (model, dtype, block_size))
    requests.run(cell, seed=list(POOLS).index(name))
    check(cell, requests)
    counts = cell.counts
    assert [count for count in POOLS[name].happens.split() if not counts[count]] == []
    # Nothing went wrong on the way; requests that run may need the room of those that come.
    assert cell.core.counters.move_failures.keys() <= {Failure.ENDED, Failure.NO_ROOM, Failure.PREEMPTED}


def test_a_decoding_executor_runs_out_of_blocks(make_cell: MakeCell, traffic: Fixture) -> None:
    """Requests are preempted, and others are turned away when their blocks are on their way already. How often depends
    on how fast blocks travel, so it is tried until both have happened."""
    requests, happened = traffic(*CHAT[:2]), set[str]()
    for seed in range(20):
        cell = make_cell("1+1-short-of-blocks")
        requests.run(cell, seed=seed)
        check(cell, requests)
        happened |= cell.core.counters.move_failures.keys()
        if cell.counts["preemptions"]:
            happened.add("preemptions")
        if happened >= {"preemptions", Failure.NO_ROOM}:
            return
    raise AssertionError(f"in 20 runs, nothing but {happened} has happened")


def is_under_way(move: Move) -> bool:
    """More of it will be pushed."""
    return move.arrival.is_granted and not move.has_left


@pytest.mark.parametrize("name", ["1+1-chunks-of-16", "2+2-chunks-of-16-tcp"])
def test_pushes_that_nobody_may_write_any_more(name: str, make_cell: MakeCell, traffic: Fixture) -> None:
    """The executor is still there, but has forgotten what it granted."""
    requests, cell = traffic(*CHAT[:2]), make_cell(name)
    failures = cell.core.counters.move_failures

    def meanwhile(turn: int) -> None:
        if "push_refused" in failures:
            # Its scheduler moves nothing to it for a while.
            cell.now += PAUSE_S
        elif any(is_under_way(move) and move.arrival.target.id == "D1" for move in cell.core.moves):
            cell.transfers["D1"].reset()

    requests.run(cell, seed=1, meanwhile=meanwhile)
    check(cell, requests)
    assert failures["push_refused"] > 0
    assert cell.counts["moves_done"] > 0


@pytest.mark.parametrize("name", ["1+1-chunks-of-16", "2+2-chunks-of-16-tcp"])
@pytest.mark.parametrize("dead", ["P1", "D1"])
def test_an_executor_dies_while_blocks_are_on_their_way(
    name: str, dead: str, make_cell: MakeCell, traffic: Fixture
) -> None:
    requests, cell = traffic(*CHAT[:2]), make_cell(name)
    pools, (_, _, block_size) = POOLS[name], CHAT

    def meanwhile(turn: int) -> None:
        lane = cell.core.lanes.get(dead)
        if lane and lane.num_running and any(is_under_way(move) for move in cell.core.moves.of(lane)):
            cell.lose(dead)
            if dead == "D1":
                pools.join_decode(cell, "D9", block_size)
            else:
                cell.join("P9", pools.shape(block_size, 4096), role="prefill", transfer=pools.transfer)

    requests.run(cell, seed=2, meanwhile=meanwhile)
    check(cell, requests)
    assert dead not in cell.runners
    assert cell.core.counters.move_failures[Failure.EXECUTOR_LOST] > 0
    assert cell.counts["moves_done"] > 0
    assert cell.counts["recoveries"] > 0


@pytest.mark.parametrize("name", ["2+2-chunks-of-64", "2+2-chunks-of-512-tcp"])
def test_requests_move_from_one_decoding_executor_to_another(name: str, make_cell: MakeCell, traffic: Fixture) -> None:
    """An executor leaves, and nobody is computed again."""
    requests, cell = traffic(*CHAT[:2]), make_cell(name)
    moved = 0

    def meanwhile(turn: int) -> None:
        nonlocal moved
        lanes = cell.core.lanes
        if "D1" in lanes:
            if lanes["D1"].num_decoding > 1 and not lanes["D1"].is_leaving:
                moved = lanes["D1"].num_decoding
                cell.core.begin_leaving("D1")
            elif lanes["D1"].is_leaving and cell.core.may_leave("D1"):
                cell.lose("D1")

    requests.run(cell, seed=3, meanwhile=meanwhile)
    check(cell, requests)
    assert moved > 1
    assert "D1" not in cell.runners
    assert cell.counts["moves_done"] > cell.counts["remote_prefills"] - cell.core.counters.moves_failed
    assert cell.counts["recoveries"] == 0


class MixedUpPushes(RealCell):
    """The right blocks arrive, but in another order."""

    def encode(self, plan: StepPlan) -> bytes:
        pushes = [push._replace(block_ids=push.block_ids[::-1]) for push in plan.pushes]
        return super().encode(plan._replace(pushes=pushes))


class OneBlockOff(RealCell):
    """Of every push, the last block is not what it should be."""

    def encode(self, plan: StepPlan) -> bytes:
        pushes = [
            push._replace(block_ids=[*push.block_ids[:-1], (push.block_ids[-1] + 1) % 256]) for push in plan.pushes
        ]
        return super().encode(plan._replace(pushes=pushes))


@pytest.mark.parametrize("cell_class", [MixedUpPushes, OneBlockOff])
def test_one_wrong_block_is_noticed(cell_class: type[RealCell], make_cell: MakeCell, traffic: Fixture) -> None:
    requests, cell = traffic(*CHAT[:2]), make_cell("1+1-chunks-of-64-tcp", CHAT, cell_class)
    requests.run(cell, seed=1)
    assert requests.differences(cell) != []

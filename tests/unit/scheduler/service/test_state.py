"""What GetState and WatchState tell operators."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from pagoda.rpc.status import from_rpc_error
from pagoda.scheduler.block_map import block_map
from pagoda.scheduler.core.host import HostBlocks
from pagoda.scheduler.core.lane import StepRecord
from pagoda.scheduler.state import describe_steps
from pagoda.v1 import common_pb2, scheduler_pb2
from pagoda.v1.scheduler_pb2 import BlockState

FREE, CACHED = BlockState.BLOCK_STATE_FREE, BlockState.BLOCK_STATE_CACHED
HELD, SHARED = BlockState.BLOCK_STATE_REFERENCED, BlockState.BLOCK_STATE_SHARED
MIXED = BlockState.BLOCK_STATE_MIXED

PROMPT = list(range(10, 18))


async def get_state(service: Any, **fields: Any) -> Any:
    return (await service.stub.GetState(scheduler_pb2.GetStateRequest(**fields))).state


def request_of_client(request_of: Any, key: int, client_id: str, prompt: list[int], **sampling: Any) -> Any:
    request = request_of(key, prompt, **sampling)
    request.client_id = client_id
    return request


async def test_an_empty_cell(service: Any) -> None:
    state = await get_state(service, block_map_cells=100)
    assert (state.num_waiting, state.max_num_waiting, state.oldest_waiting_s) == (0, 1024, 0)
    assert not state.HasField("model")
    assert not state.lanes
    assert not state.waiting_clients
    assert state.policy == "priority"


async def test_uptime_passes(service: Any) -> None:
    first = await get_state(service)
    await asyncio.sleep(0.01)
    assert 0 < first.uptime_s + 0.009 < (await get_state(service)).uptime_s < 60


async def test_the_policy_is_named(start: Any) -> None:
    assert (await get_state(await start(scheduling_policy="fair"))).policy == "fair"


async def test_who_waits_and_since_when(service: Any, request_of: Any) -> None:
    tokenizer = await service.tokenizer()
    clients = ["b", "a", "", "a", *(f"single {i}" for i in range(10))]
    await tokenizer.send(
        *(request_of_client(request_of, key, each, PROMPT, max_tokens=3) for key, each in enumerate(clients))
    )
    await service.until(lambda: len(service.engine.core.waiting) == len(clients))
    await asyncio.sleep(0.05)
    state = await get_state(service)
    assert state.num_waiting == 14
    assert 0.05 <= state.oldest_waiting_s < 60
    found = [(each.client_id, each.num_waiting) for each in state.waiting_clients]
    assert found == [("a", 2), ("b", 1), ("", 1), *((f"single {i}", 1) for i in range(5))]


async def test_a_lane_at_work(service: Any, request_of: Any) -> None:
    executor = await service.executor("one", max_num_batched_tokens=12)
    tokenizer = await service.tokenizer()
    # Both begin with the same two blocks; the second goes on with a prompt that takes more than one step.
    executor.pause_at = 8
    await tokenizer.send(request_of(1, PROMPT, max_tokens=40, ignore_eos=True))
    await service.until(lambda: len(executor.plans) == 8)
    await tokenizer.send(request_of(2, PROMPT + list(range(100, 132)), max_tokens=4, ignore_eos=True))
    await service.until(lambda: len(service.engine.core.requests) == 2)
    executor.pause_at = 9
    executor.may_answer.set()
    await service.until(lambda: len(executor.plans) == 9)
    flights = service.engine.core.lanes[executor.session.session_id].flights
    await service.until(lambda: len(flights) == 2 and not service.engine.core.waiting)

    state = await get_state(service, block_map_cells=64)
    (lane,) = state.lanes
    assert state.model.model_type == "llama"
    assert (lane.name, lane.role) == ("one", common_pb2.EXECUTOR_ROLE_MIXED)
    assert (lane.num_running, lane.num_decoding, lane.num_prefilling) == (2, 1, 1)
    assert (lane.max_num_seqs, lane.max_num_batched_tokens) == (4, 12)
    assert lane.steps_in_flight == lane.max_steps_in_flight == 2
    assert lane.steps == lane.recent_steps.num_steps >= 5
    assert lane.last_forward_ns == 1000
    assert (lane.recent_steps.forward_p50_ns, lane.recent_steps.forward_p99_ns) == (1000, 1000)
    assert 0 < lane.recent_steps.turnaround_p50_ns <= lane.recent_steps.turnaround_p99_ns < 10e9
    assert lane.recent_steps.mean_num_rows == 1
    assert 1 < lane.recent_steps.mean_num_tokens <= 8
    assert lane.num_free_blocks + lane.num_cached_blocks + lane.num_referenced_blocks == 64
    assert (lane.num_host_blocks, lane.num_used_host_blocks) == (0, 0)
    cells = list(lane.block_map.cells)
    assert lane.block_map.num_shared_blocks == cells.count(SHARED) == 2
    assert cells.count(HELD) == lane.num_referenced_blocks - 2
    assert cells.count(FREE) == lane.num_free_blocks
    assert len(cells) == 64

    executor.may_answer.set()
    await tokenizer.until(lambda: len(tokenizer.finished) == 2)
    state = await get_state(service, block_map_cells=1000)
    (lane,) = state.lanes
    assert (lane.num_running, lane.num_decoding, lane.num_prefilling) == (0, 0, 0)
    assert list(lane.block_map.cells).count(CACHED) == lane.num_cached_blocks > 0
    assert (state.prefix_cache_queries, state.prefix_cache_hits) == (48, 8)
    assert (state.requests_finished, state.generation_tokens) == (2, 44)


async def test_host_memory(service: Any) -> None:
    executor = await service.executor()
    host = service.engine.core.lanes[executor.session.session_id].host = HostBlocks(7)
    host.write(b"hash")
    (lane,) = (await get_state(service)).lanes
    assert (lane.num_host_blocks, lane.num_used_host_blocks) == (7, 1)
    assert not lane.HasField("recent_steps")
    assert not lane.HasField("block_map")


async def test_watching_sends_block_maps_of_the_asked_size(service: Any) -> None:
    await service.executor()
    request = scheduler_pb2.WatchStateRequest(block_map_cells=10)
    request.interval.FromMilliseconds(50)
    call = service.stub.WatchState(request)
    states = [(await call.read()).state for _ in range(2)]
    call.cancel()
    assert [list(state.lanes[0].block_map.cells) for state in states] == [[FREE] * 10] * 2
    assert states[1].uptime_s > states[0].uptime_s


@pytest.mark.parametrize("method", ["GetState", "WatchState"])
async def test_block_maps_are_bounded(service: Any, method: str) -> None:
    if method == "GetState":
        call = service.stub.GetState(scheduler_pb2.GetStateRequest(block_map_cells=65537))
    else:
        call = service.stub.WatchState(scheduler_pb2.WatchStateRequest(block_map_cells=65537)).read()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    error = from_rpc_error(raised.value)
    assert (error.param, error.message) == ("block_map_cells", "block_map_cells must be at most 65536, got 65537")


def test_percentiles_are_values_that_occurred() -> None:
    steps = [StepRecord(forward_ns, 2 * forward_ns, 3, forward_ns) for forward_ns in range(200, 0, -1)]
    described = describe_steps(steps)
    assert (described.forward_p50_ns, described.forward_p99_ns) == (100, 198)
    assert (described.turnaround_p50_ns, described.turnaround_p99_ns) == (200, 396)
    assert (described.num_steps, described.mean_num_rows, described.mean_num_tokens) == (200, 3, 100.5)
    one = describe_steps(steps[:1])
    assert (one.forward_p50_ns, one.forward_p99_ns) == (200, 200)


def cells_of(ref_counts: list[int], cached: list[int], num_cells: int) -> list[int]:
    is_cached = np.zeros(len(ref_counts), np.bool_)
    is_cached[cached] = True
    return block_map(np.array(ref_counts, np.int32), is_cached, num_cells).tolist()


def test_a_cell_for_every_block() -> None:
    assert cells_of([0, 0, 1, 2, 9], [1], 5) == [FREE, CACHED, HELD, SHARED, SHARED]
    assert cells_of([0, 0, 1, 2, 9], [1], 100) == [FREE, CACHED, HELD, SHARED, SHARED]


@pytest.mark.parametrize(
    ("ref_counts", "cached", "expected"),
    [
        ([0, 0, 0, 0], [], FREE),
        ([0, 0, 0, 0], [0, 1, 2, 3], CACHED),
        ([1, 1, 1, 1], [], HELD),
        ([2, 3, 4, 5], [], SHARED),
        ([0, 0, 0, 0], [2], MIXED),
        ([1, 0, 0, 0], [], MIXED + 31),
        ([1, 2, 0, 0], [2], MIXED + 63),
        ([1, 2, 2, 1], [], MIXED + 127),
    ],
)
def test_blocks_of_one_cell(ref_counts: list[int], cached: list[int], expected: int) -> None:
    assert cells_of(ref_counts, cached, 1) == [expected]


@pytest.mark.parametrize("num_cells", range(1, 12))
def test_every_block_is_in_one_cell(num_cells: int) -> None:
    """A single held block shows in one cell, wherever it is; cells differ by one block at most."""
    sizes: dict[int, int] = {}
    for held in range(11):
        ref_counts = [int(block_id == held) for block_id in range(11)]
        cells = cells_of(ref_counts, [], num_cells)
        assert len(cells) == num_cells
        (cell,) = (index for index, value in enumerate(cells) if value != FREE)
        sizes[cell] = sizes.get(cell, 0) + 1
    assert sorted(sizes) == list(range(num_cells))
    assert max(sizes.values()) - min(sizes.values()) <= 1

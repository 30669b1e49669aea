"""What step plans say of grants and pushes, carried out between two caches in one process."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pagoda.executor.kv_cache import KvLayout, allocate
from pagoda.executor.plan_arrays import PlanError
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.executor.transfers import Transfers, make_transfers
from pagoda.rpc.arrays import pack_u32, pack_u64, unpack_u32, unpack_u64
from pagoda.v1 import step_pb2

NUM_BLOCKS = 8
LAYOUT = KvLayout(NUM_BLOCKS, block_size=4, num_layers=2, num_kv_heads=1, head_dim=8, dtype=torch.float32)
TIMEOUT_S = 30.0


class Side:
    """One executor's cache and transfers."""

    def __init__(self, value: float, **options: Any) -> None:
        """value: block i is full of value + i"""
        memory = SharedMemory(LAYOUT.num_bytes)
        cache = allocate(LAYOUT, torch.device("cpu"), memory)
        cache.copy_((value + torch.arange(NUM_BLOCKS)).view(1, 1, -1, 1, 1, 1).expand_as(cache))
        self.cache = cache
        runner: Any = SimpleNamespace(cache=cache, layout=LAYOUT, shared_memory=memory)
        options = {"listen": "tcp://127.0.0.1:*", "encrypted": False} | options
        self.transfers: Transfers = make_transfers(runner, **options)

    def block(self, index: int) -> float:
        """The number that block `index` is full of."""
        (value,) = self.cache[:, :, index].unique().tolist()
        return float(value)

    def news(self) -> step_pb2.ExecutorMessage:
        """The next that there is to tell."""
        message = step_pb2.ExecutorMessage()
        while not self.transfers.add_news(message):
            assert select.select(self.transfers.filenos, [], [], TIMEOUT_S)[0], "no news"
        return message

    def wait_for(self, number: int, count: int) -> None:
        """Until `count` blocks of a grant have come."""
        arrived = 0
        while arrived < count:
            news = self.news()
            assert not news.failed_pushes
            told = dict(zip(unpack_u64(news.arrived_grants), unpack_u32(news.arrived_counts), strict=True))
            arrived = int(told[number])


@pytest.fixture
def make_side() -> Iterator[Callable[..., Side]]:
    sides: list[Side] = []

    def make(value: float, **options: Any) -> Side:
        sides.append(Side(value, **options))
        return sides[-1]

    yield make
    for side in sides:
        side.transfers.close()


def grant(number: int, *block_ids: int) -> step_pb2.StepPlan:
    return step_pb2.StepPlan(grants=[step_pb2.Grant(number=number, block_ids=pack_u32(block_ids), timeout_s=TIMEOUT_S)])


def push(target: Side, number: int, *block_ids: int, first_position: int = 0) -> step_pb2.StepPlan:
    return step_pb2.StepPlan(
        pushes=[
            step_pb2.Push(
                number=number,
                endpoints=target.transfers.endpoints,
                first_position=first_position,
                block_ids=pack_u32(block_ids),
            )
        ]
    )


@pytest.mark.parametrize(
    "options", [{}, {"only": "tcp"}, {"listen": None}, {"encrypted": True, "only": "tcp"}], ids=str
)
def test_blocks_go_where_the_grant_says(make_side: Callable[..., Side], options: dict[str, Any]) -> None:
    source, target = make_side(100), make_side(200, **options)
    target.transfers.apply(grant(7, 5, 2, 0))
    source.transfers.push(push(target, 7, 1, 3))
    source.transfers.push(push(target, 7, 6, first_position=2))
    target.wait_for(7, 3)
    assert [target.block(index) for index in range(NUM_BLOCKS)] == [106, 201, 103, 203, 204, 101, 206, 207]


def test_a_withdrawn_grant_is_written_to_no_more(make_side: Callable[..., Side]) -> None:
    source, target = make_side(100), make_side(200)
    target.transfers.apply(grant(7, 5))
    target.transfers.apply(step_pb2.StepPlan(withdrawn_grants=pack_u64([7])))
    source.transfers.push(push(target, 7, 1))
    (failed,) = source.news().failed_pushes
    assert (failed.number, failed.reason) == (7, "refused")
    assert target.block(5) == 205


def test_a_push_to_nobody_fails(make_side: Callable[..., Side]) -> None:
    source, target = make_side(100), make_side(200)
    plan = push(target, 7, 1)
    target.transfers.reset()
    source.transfers.push(plan)
    assert source.news().failed_pushes[0].number == 7


def test_a_grant_ends_by_itself_in_the_end(make_side: Callable[..., Side]) -> None:
    target = make_side(200)
    plan = grant(7, 5)
    plan.grants[0].timeout_s = 0.01
    target.transfers.apply(plan)
    (failed,) = target.news().failed_pushes
    assert (failed.number, failed.reason) == (7, "timeout")


def test_after_a_reset_the_endpoints_are_others(make_side: Callable[..., Side]) -> None:
    target = make_side(200)
    before = target.transfers.endpoints
    target.transfers.reset()
    assert set(before).isdisjoint(target.transfers.endpoints)
    assert not target.transfers.add_news(step_pb2.ExecutorMessage())


def test_only_the_asked_ways_are_told(make_side: Callable[..., Side]) -> None:
    def schemes(**options: Any) -> list[str]:
        return [endpoint.partition(":")[0] for endpoint in make_side(0, **options).transfers.endpoints]

    assert schemes() == ["shm", "tcp"]
    assert schemes(only="tcp") == ["tcp"]
    assert schemes(listen=None) == ["shm"]


@pytest.mark.parametrize(
    "plan",
    [
        grant(7, NUM_BLOCKS),
        grant(7, 1, 1),
        step_pb2.StepPlan(pushes=[step_pb2.Push(number=7, block_ids=pack_u32([NUM_BLOCKS]))]),
        step_pb2.StepPlan(grants=[step_pb2.Grant(number=7, block_ids=b"123")]),
    ],
    ids=["no such block", "twice", "push of no such block", "odd bytes"],
)
def test_a_plan_that_cannot_be_is_refused(make_side: Callable[..., Side], plan: step_pb2.StepPlan) -> None:
    transfers = make_side(0).transfers
    with pytest.raises(PlanError):  # noqa: PT012
        transfers.apply(plan)
        transfers.push(plan)


def test_an_address_that_is_none_names_the_option(make_side: Callable[..., Side]) -> None:
    with pytest.raises(ValueError, match="--transfer-endpoint"):
        make_side(0, listen="tcp://10.1.2.3:5000")


def test_cuda_needs_a_gpu(make_side: Callable[..., Side]) -> None:
    with pytest.raises(ValueError, match="--transfer is cuda"):
        make_side(0, only="cuda", listen=None)

"""Copies of whole KV blocks: what ends up where, in which order, and plans that are refused."""

from __future__ import annotations

import pytest
import torch
from step_plans import Pairs, make_plan
from torch import Tensor

from pagoda.executor.block_copies import BlockCopier
from pagoda.executor.plan_arrays import PlanError
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import step_pb2

NUM_BLOCKS, NUM_HOST_BLOCKS = 6, 4

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def cache(request: pytest.FixtureRequest) -> Tensor:
    """[2 layers, 2, NUM_BLOCKS, 4, 1, 8], in which every number is another."""
    numbers = torch.arange(2 * 2 * NUM_BLOCKS * 4 * 8, dtype=torch.float32)
    return numbers.view(2, 2, NUM_BLOCKS, 4, 1, 8).to(request.param)


def check(cache: Tensor, before: Tensor, moved: dict[int, int]) -> None:
    """moved: block -> the block whose content it has now; all others are as they were."""
    origins = [moved.get(block, block) for block in range(NUM_BLOCKS)]
    assert torch.equal(cache, before[:, :, origins])


def test_blocks_come_back_from_host_memory(cache: Tensor) -> None:
    copier, before = BlockCopier(cache, NUM_HOST_BLOCKS), cache.clone()
    copier.apply(make_plan(offloads=[(0, 3), (5, 1)]))
    check(cache, before, {})
    cache[:, :, 0] = -1.0  # meanwhile another request has it
    copier.apply(make_plan(loads=[(3, 2), (1, 0), (3, 4)]))
    check(cache, before, {2: 0, 0: 5, 4: 0})


def test_a_host_block_is_written_again(cache: Tensor) -> None:
    copier, before = BlockCopier(cache, 1), cache.clone()
    copier.apply(make_plan(offloads=[(0, 0)]))
    copier.apply(make_plan(offloads=[(1, 0)]))
    copier.apply(make_plan(loads=[(0, 5)]))
    check(cache, before, {5: 1})


@pytest.mark.parametrize(
    ("copies", "moved"),
    [
        ([(1, 2)], {2: 1}),
        ([(1, 2), (2, 1)], {1: 2, 2: 1}),
        ([(1, 2), (2, 3), (3, 4)], {2: 1, 3: 2, 4: 3}),
        ([(0, 4), (0, 5)], {4: 0, 5: 0}),
    ],
)
def test_all_sources_are_read_before_a_target_is_written(cache: Tensor, copies: Pairs, moved: dict[int, int]) -> None:
    copier, before = BlockCopier(cache, 0), cache.clone()
    copier.apply(make_plan(copies=copies))
    check(cache, before, moved)


def test_offloads_then_copies_then_loads(cache: Tensor) -> None:
    copier, before = BlockCopier(cache, NUM_HOST_BLOCKS), cache.clone()
    # Block 0 goes to host memory before block 1 is copied over it; that is copied on before block 0 comes back there.
    copier.apply(make_plan(offloads=[(0, 2)], copies=[(1, 0), (2, 1)], loads=[(2, 2)]))
    check(cache, before, {0: 1, 1: 2, 2: 0})


def test_other_plans_copy_nothing(cache: Tensor) -> None:
    before = cache.clone()
    BlockCopier(cache, NUM_HOST_BLOCKS).apply(make_plan({0: 2}, ended=[1], blocks=[(0, 0, 1)]))
    check(cache, before, {})


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        (r"offloads.sources has 6, which is outside \[0, 6\)", make_plan(offloads=[(6, 0)])),
        (r"offloads.targets has 4, which is outside \[0, 4\)", make_plan(offloads=[(0, 4)])),
        ("copies.sources has 6", make_plan(copies=[(6, 0)])),
        ("copies.targets has 7", make_plan(copies=[(0, 7)])),
        ("loads.sources has 4", make_plan(loads=[(4, 0)])),
        ("loads.targets has 6", make_plan(loads=[(0, 6)])),
        ("offloads.targets has 3 more than once", make_plan(offloads=[(1, 3), (2, 3)])),
        ("copies.targets has 3 more than once", make_plan(copies=[(1, 3), (2, 4), (2, 3)])),
        ("loads.targets has 5 more than once", make_plan(loads=[(0, 5), (0, 5)])),
        ("host block 1 is loaded, but nothing was offloaded to it", make_plan(loads=[(0, 5), (1, 3)])),
        (
            "1 copies.sources, 0 copies.targets",
            step_pb2.StepPlan(copies=step_pb2.BlockCopies(sources=pack_u32([1]))),
        ),
        ("loads.targets has 3 bytes", step_pb2.StepPlan(loads=step_pb2.BlockCopies(targets=b"abc"))),
    ],
)
def test_wrong_plans_are_refused(cache: Tensor, message: str, bad: step_pb2.StepPlan) -> None:
    copier, before = BlockCopier(cache, NUM_HOST_BLOCKS), cache.clone()
    copier.apply(make_plan(offloads=[(0, 0)]))
    bad.offloads.sources += pack_u32([0])
    bad.offloads.targets += pack_u32([2])
    with pytest.raises(PlanError, match=message):
        copier.apply(bad)
    check(cache, before, {})


def test_without_host_memory(cache: Tensor) -> None:
    with pytest.raises(PlanError, match=r"offloads.targets has 0, which is outside \[0, 0\)"):
        BlockCopier(cache, 0).apply(make_plan(offloads=[(0, 0)]))


def test_nothing_is_in_host_memory_after_a_reset(cache: Tensor) -> None:
    copier = BlockCopier(cache, NUM_HOST_BLOCKS)
    copier.apply(make_plan(offloads=[(0, 0)]))
    copier.reset()
    with pytest.raises(PlanError, match="host block 0 is loaded"):
        copier.apply(make_plan(loads=[(0, 1)]))

"""A cache as bytes: what is read, what is written, and where."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagoda.executor.transfer.block_memory import (
    BlockMemory,
    NumpyBlocks,
    as_tensor,
    block_memory,
    piece_blocks,
)
from pagoda.executor.transfer.device_blocks import DeviceBlocks

CACHES = [
    ((3, 2, 9, 4, 2, 8), 2, torch.bfloat16),
    ((9, 5, 3), 0, torch.float32),
    ((2, 9, 7), 1, torch.int8),
]


def parts(cache: Tensor, axis: int) -> Tensor:
    return cache.view(int(np.prod(cache.shape[:axis])), cache.shape[axis], -1).view(torch.uint8)


def numpy_blocks(cache: Tensor, axis: int) -> BlockMemory:
    return NumpyBlocks(parts(cache, axis))


def device_blocks(cache: Tensor, axis: int) -> BlockMemory:
    return DeviceBlocks(parts(cache, axis))


@pytest.fixture(params=[block_memory, numpy_blocks, device_blocks], ids=["native", "numpy", "device"])
def make(request: pytest.FixtureRequest) -> Callable[[Tensor, int], BlockMemory]:
    made: Callable[[Tensor, int], BlockMemory] = request.param
    return made


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.parametrize(("shape", "axis", "dtype"), CACHES)
def test_blocks_move_between_caches(
    make: Callable[[Tensor, int], BlockMemory], shape: tuple[int, ...], axis: int, dtype: torch.dtype
) -> None:
    source, target = numbers(shape, dtype), torch.zeros(shape, dtype=dtype)
    reader, writer = make(source, axis), make(target, axis)
    assert (reader.num_blocks, reader.block_bytes) == (9, source[0].nbytes if axis == 0 else source.nbytes // 9)
    piece = np.zeros(3 * reader.block_bytes, np.uint8)
    reader.read(np.array([7, 0, 4]), piece)
    piece.flags.writeable = False  # as what comes from ZeroMQ is
    blocks = piece_blocks(as_tensor(piece), reader.num_parts, 3)
    writer.write(np.array([2, 8, 1]), blocks.source, blocks.ids)
    expected = torch.zeros(shape, dtype=dtype)
    expected.index_copy_(axis, torch.tensor([2, 8, 1]), source.index_select(axis, torch.tensor([7, 0, 4])))
    assert torch.equal(target, expected)


def test_some_blocks_of_a_piece(make: Callable[[Tensor, int], BlockMemory]) -> None:
    source = numbers((2, 9, 4), torch.float32)
    target = torch.zeros_like(source)
    reader, writer = make(source, 1), make(target, 1)
    piece = np.zeros(3 * reader.block_bytes, np.uint8)
    reader.read(np.array([1, 2, 3]), piece)
    writer.write(np.array([5, 6]), piece_blocks(torch.from_numpy(piece), 2, 3).source, np.array([0, 2]))
    assert torch.equal(target[:, [5, 6]], source[:, [1, 3]])
    assert not target[:, [0, 1, 2, 3, 4, 7, 8]].any()


def test_blocks_of_another_cache(make: Callable[[Tensor, int], BlockMemory]) -> None:
    source, target = numbers((2, 17, 40), torch.float32), torch.zeros(2, 9, 40)
    memory = source.view(torch.uint8).numpy()
    memory.flags.writeable = False
    make(target, 1).write(np.array([5, 0, 6]), as_tensor(memory), np.array([16, 3, 3]))
    assert torch.equal(target[:, [5, 0, 6]], source[:, [16, 3, 3]])
    assert not target[:, [1, 2, 3, 4, 7, 8]].any()


@given(st.data())
def test_a_device_does_what_the_cpu_does(data: st.DataObject) -> None:
    num_parts, num_blocks, part_bytes = (data.draw(st.integers(1, most)) for most in (4, 12, 40))
    content = numbers((num_parts, num_blocks, part_bytes), torch.uint8)
    ids = st.integers(0, num_blocks - 1)
    sources = np.array(data.draw(st.lists(ids, max_size=8)), np.int64)
    targets = np.array(data.draw(st.permutations(range(num_blocks))))[: len(sources)]
    pieces, caches = [], []
    for make in (block_memory, device_blocks):
        piece, cache = np.zeros(len(sources) * num_parts * part_bytes, np.uint8), content.clone()
        make(cache, 1).read(sources, piece)
        assert torch.equal(cache, content)
        make(cache, 1).write(targets, content.flip(1), sources[: len(targets)])
        pieces.append(piece)
        caches.append(cache)
    assert np.array_equal(*pieces)
    assert torch.equal(*caches)


def test_memory_that_is_only_read_as_a_tensor(recwarn: pytest.WarningsRecorder) -> None:
    memory = np.frombuffer(b"abc", np.uint8)
    tensor = as_tensor(memory)
    assert tensor.data_ptr() == memory.ctypes.data
    gone = weakref.ref(memory)
    del memory
    assert tensor.tolist() == list(b"abc")
    assert gone() is not None
    del tensor
    assert gone() is None
    assert not recwarn


def test_a_cache_must_be_contiguous() -> None:
    with pytest.raises(RuntimeError, match="view"):
        block_memory(torch.zeros(4, 6, 8).transpose(1, 2), 0)

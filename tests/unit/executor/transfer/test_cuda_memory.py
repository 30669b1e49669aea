"""Reading a GPU's memory through CUDA, with CPU tensors in the place of what its driver has; tests/gpu has a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transfer_ends import (
    BLOCK_BYTES,
    EMPTY,
    LAYOUT,
    NUM_BLOCKS,
    MakeReceiver,
    MakeSender,
    block,
    empty_cache,
    full_cache,
    is_empty,
    mapped_sources,
    poll,
    through,
    wait_for_arrivals,
)

from pagoda.executor.transfer import receiver as receiver_module
from pagoda.executor.transfer import sender as sender_module
from pagoda.executor.transfer.block_memory import as_tensor, block_memory
from pagoda.executor.transfer.cuda_memory import open_cuda, share_cuda
from pagoda.executor.transfer.device_blocks import DeviceBlocks
from pagoda.executor.transfer.intake import BadMessageError, Intake
from pagoda.executor.transfer.leases import Leases
from pagoda.executor.transfer.receiver import Receiver
from pagoda.executor.transfer.reports import Reason
from pagoda.executor.transfer.sender import Sender
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import transfer_pb2 as pb

GPU = torch.device("cuda", 0)
OFFSET = 512
# What two processes may call the GPUs that both see.
UUIDS = ["GPU-b", "GPU-a"]

pytestmark = pytest.mark.timeout(60)


class FakeCuda:
    """A driver that both ends know, and that has two GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared: list[torch.UntypedStorage] = []
        self.opened: list[weakref.ref[Any]] = []
        self.readers = 0
        """Whom torch would wait for."""
        self.is_broken = False
        fake = self

        def share(storage: torch.UntypedStorage) -> tuple[object, ...]:
            fake._check()
            fake.shared.append(storage)
            fake.readers += 1
            handle = b"handle %d" % (len(fake.shared) - 1)
            return 1, handle, storage.nbytes(), OFFSET, b"counter", 7, b"event", True

        def release(counter: bytes, counter_offset: int) -> None:
            assert (counter, counter_offset) == (b"counter", 7)
            fake.readers -= 1

        def open_shared(
            device: int, handle: bytes, num_bytes: int, offset: int, *counter_and_event: object
        ) -> torch.UntypedStorage:
            fake._check()
            assert counter_and_event == (b"", 0, b"", False)
            assert (device, offset) == (1, OFFSET)
            storage = fake.shared[int(handle.removeprefix(b"handle "))]
            assert storage.nbytes() == num_bytes
            memory = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().view()
            fake.opened.append(weakref.ref(memory))
            return as_tensor(memory).untyped_storage()

        monkeypatch.setattr(torch.UntypedStorage, "_share_cuda_", share)
        monkeypatch.setattr(torch.UntypedStorage, "_release_ipc_counter_cuda", staticmethod(release))
        monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", staticmethod(open_shared))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(UUIDS))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=UUIDS[index]))

    @property
    def num_open(self) -> int:
        gc.collect()
        return sum(each() is not None for each in self.opened)

    def _check(self) -> None:
        if self.is_broken:
            raise RuntimeError("CUDA error: invalid resource handle")


def device_blocks(cache: Tensor, block_axis: int) -> DeviceBlocks:
    """As of a cache on a GPU, but for where it is."""
    num_parts = int(np.prod(cache.shape[:block_axis]))
    blocks = DeviceBlocks(cache.view(num_parts, cache.shape[block_axis], -1).view(torch.uint8))
    blocks.device = GPU
    return blocks


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def receives_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "block_memory", device_blocks)


@pytest.fixture
def make_gpu_sender(ends: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Sender]:
    """Of a cache that is in no other memory."""
    monkeypatch.setattr(sender_module, "block_memory", device_blocks)
    return lambda: ends.enter_context(closing(Sender(full_cache(), 2, LAYOUT)))


def test_a_reader_sees_what_is_written(cuda: FakeCuda) -> None:
    cache = full_cache()
    seen = open_cuda(share_cuda(cache), cache.nbytes, GPU)
    assert torch.equal(seen, cache.view(torch.uint8).view(-1))
    cache.zero_()
    assert not seen.any()
    assert cuda.readers == 0
    del seen
    assert cuda.num_open == 0


def test_what_is_not_opened(cuda: FakeCuda) -> None:
    cache = full_cache()
    address = share_cuda(cache)
    with pytest.raises(OSError, match=f"it has {cache.nbytes} bytes, not {cache.nbytes + 1}"):
        open_cuda(address, cache.nbytes + 1, GPU)
    with pytest.raises(OSError, match="would be copied to the cpu's"):
        open_cuda(address, cache.nbytes, torch.device("cpu"))
    cuda.is_broken = True
    with pytest.raises(OSError, match="invalid resource handle"):
        open_cuda(address, cache.nbytes, GPU)
    address.device_uuid = "GPU-c"
    with pytest.raises(OSError, match="the GPU GPU-c is not seen from here"):
        open_cuda(address, cache.nbytes, GPU)


def test_a_cache_that_cannot_be_shared(cuda: FakeCuda) -> None:
    cuda.is_broken = True
    with pytest.raises(OSError, match="cannot be shared"):
        share_cuda(full_cache())


def intake(blocks: Any, leases: Leases) -> Intake:
    return Intake(leases, LAYOUT, blocks, window_bytes=1 << 20, max_links=9, idle_timeout_s=9)


def hello(leases: Leases, cache: Tensor) -> pb.TransferHello:
    message = pb.TransferHello(
        session=leases.session,
        layout=LAYOUT,
        block_bytes=BLOCK_BYTES,
        piece_bytes=4 * BLOCK_BYTES,
        cuda_memory=share_cuda(cache),
    )
    message.layout.num_blocks = NUM_BLOCKS
    return message


@pytest.mark.parametrize("checksum", [None, 0])
@pytest.mark.usefixtures("cuda")
def test_blocks_are_copied_from_where_they_are(cuda: FakeCuda, checksum: int | None) -> None:
    source, target = full_cache(), empty_cache()
    blocks = device_blocks(target, 2)
    leases = Leases(blocks, 9, lambda: None)
    reading = intake(blocks, leases)
    reading.hello(b"name", hello(leases, source))
    leases.grant(1, [7, 3, 0], 10)
    source[:, :, 47] = 1.5  # nothing is read before it is wanted
    push = pb.BlockPush(transfer_id=1, num_blocks=3, block_ids=pack_u32([47, 5, 46]), crc32=checksum)
    reading.push(b"name", push, None)
    assert reading.advance(b"name")
    if checksum is None:
        for here, there in ((7, 47), (3, 5), (0, 46)):
            assert torch.equal(block(target, here), block(source, there))
    else:
        assert leases.take_failures() == [(1, Reason.CORRUPT)]
    assert sum(not is_empty(target, each) for each in range(NUM_BLOCKS)) == (3 if checksum is None else 0)
    assert cuda.num_open == 1
    reading.drop(b"name")
    assert cuda.num_open == 0


@pytest.mark.usefixtures("cuda")
def test_a_cache_on_the_cpu_does_not_read_a_gpus() -> None:
    """Its receiver names no such endpoint; who asks for it all the same is told."""
    blocks = block_memory(empty_cache(), 2)
    leases = Leases(blocks, 9, lambda: None)
    with pytest.raises(BadMessageError, match="would be copied to the cpu's") as caught:
        intake(blocks, leases).hello(b"name", hello(leases, full_cache()))
    assert caught.value.reason is Reason.UNREACHABLE


def schemes(receiver: Receiver) -> list[str]:
    return [each.partition(":")[0] for each in receiver.endpoints if "nixl" not in each]


def check(target: Tensor, source: Tensor) -> None:
    """Blocks 9 and 7 have come to 0 and 4."""
    for here, there in ((0, 9), (4, 7)):
        assert torch.equal(block(target, here), block(source, there))
    assert (target.view(torch.int16)[:, :, 5:] == EMPTY).all()


@pytest.mark.usefixtures("receives_on_gpu")
def test_from_one_gpu_to_another(
    cuda: FakeCuda, make_receiver: MakeReceiver, make_gpu_sender: Callable[[], Sender]
) -> None:
    target = empty_cache()
    receiver, sender = make_receiver(target), make_gpu_sender()
    assert schemes(receiver) == ["cuda", "shm", "tcp"]
    receiver.grant(1, [0, 4], 10)
    sender.push(receiver.endpoints, 1, 0, [9, 7])
    wait_for_arrivals(receiver, {1: 2})
    check(target, full_cache())
    assert (cuda.num_open, mapped_sources()) == (1, 0)
    sender.reset()
    poll(lambda: cuda.num_open == 0, "its memory is not open any more")


@pytest.mark.usefixtures("receives_on_gpu")
@pytest.mark.parametrize("problem", ["another GPU", "not opened", "not shared", "another host"])
def test_the_next_endpoint_is_used_where_cuda_cannot_be(
    cuda: FakeCuda,
    problem: str,
    make_receiver: MakeReceiver,
    make_gpu_sender: Callable[[], Sender],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = empty_cache()
    cuda.is_broken = problem == "not shared"
    receiver, sender = make_receiver(target), make_gpu_sender()
    cuda.is_broken = problem in ("not shared", "not opened")
    if problem == "another GPU":
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    endpoints = receiver.endpoints
    if problem == "another host":
        endpoints[0] = endpoints[0].replace("cuda://", "cuda://not-")
    receiver.grant(1, [0, 4], 10)
    sender.push(endpoints, 1, 0, [9, 7])
    wait_for_arrivals(receiver, {1: 2})
    check(target, full_cache())
    assert sender.take_failures() == []
    assert cuda.num_open == 0


@pytest.mark.usefixtures("cuda", "receives_on_gpu")
def test_from_a_cpu_to_a_gpu(make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    target = empty_cache()
    receiver, sender = make_receiver(target), make_sender()
    receiver.grant(1, [0, 4], 10)
    sender.push(receiver.endpoints, 1, 0, [9, 7])
    wait_for_arrivals(receiver, {1: 2})
    check(target, full_cache())
    assert mapped_sources() == 1


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_from_a_gpu_to_a_cpu(
    cuda: FakeCuda, transport: str, make_receiver: MakeReceiver, make_gpu_sender: Callable[[], Sender]
) -> None:
    target = empty_cache()
    receiver, sender = make_receiver(target), make_gpu_sender()
    assert schemes(receiver) == ["shm", "tcp"]
    receiver.grant(1, [0, 4], 10)
    sender.push(through(transport, receiver), 1, 0, [9, 7])
    wait_for_arrivals(receiver, {1: 2})
    check(target, full_cache())
    assert (cuda.num_open, mapped_sources()) == (0, 0)

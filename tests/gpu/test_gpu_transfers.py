"""KV blocks out of a GPU's memory and into it: through the CPU's, and from another process's memory on the same GPU."""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

# The helpers stand beside this file.
sys.path.insert(0, str(Path(__file__).parent))

from gpu_ends import LAYOUT, End, digest, random_cache

from pagoda.executor.transfer.block_memory import block_memory, piece_blocks
from pagoda.executor.transfer.device_blocks import DeviceBlocks
from pagoda.executor.transfer.intake import BadMessageError
from pagoda.executor.transfer.reports import Reason
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.v1 import transfer_pb2 as pb

# The first is a part of a larger allocation, the second has one of its own.
SIZES = (48, 5000)
# Of a device that is busy for a second or so.
BUSY_CYCLES = 2_000_000_000

pytestmark = pytest.mark.timeout(120)


class Other:
    """gpu_ends.py in a process of its own."""

    def __init__(self, seed: int, num_blocks: int) -> None:
        self.content = random_cache(seed, num_blocks)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("gpu_ends.py")), str(seed), str(num_blocks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **order: object) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, "the other process has ended"
        return answer

    def hello(self) -> bytes:
        return bytes.fromhex(self.ask(op="share"))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def make_other() -> Iterator[Callable[[int, int], Other]]:
    others: list[Other] = []

    def make(seed: int, num_blocks: int) -> Other:
        others.append(Other(seed, num_blocks))
        return others[-1]

    yield make
    for other in others:
        other.kill()


def choose(rng: random.Random, num_blocks: int) -> tuple[list[int], list[int]]:
    """Targets, each once, and sources."""
    count = rng.randint(1, 40)
    return rng.sample(range(num_blocks), count), rng.choices(range(num_blocks), k=count)


@pytest.mark.parametrize("num_blocks", SIZES)
def test_blocks_of_another_process(make_other: Callable[[int, int], Other], num_blocks: int) -> None:
    other, end, rng = make_other(1, num_blocks), End(2, num_blocks), random.Random(3)
    expected = random_cache(2, num_blocks)
    end.greet(other.hello())
    for _ in range(20):
        targets, sources = choose(rng, num_blocks)
        end.receive(targets, sources)
        expected[:, :, targets] = other.content[:, :, sources]
        assert digest(end.cache) == digest(expected)
    targets, sources = choose(rng, num_blocks)
    end.receive(targets, sources, crc32=zlib.crc32(other.content[:, :, sources].view(torch.uint8).numpy().tobytes()))
    expected[:, :, targets] = other.content[:, :, sources]
    assert digest(end.cache) == digest(expected)
    assert end.leases.take_failures() == []
    # What it reads from is as it was.
    end.hang_up()
    assert other.ask(op="digest") == digest(other.content)


@pytest.mark.parametrize("num_blocks", SIZES)
def test_other_processes_read_ours(make_other: Callable[[int, int], Other], num_blocks: int) -> None:
    """They come and go: torch would count them, and nothing here does."""
    end, rng = End(2, num_blocks), random.Random(4)
    hello, source = end.hello().hex(), random_cache(2, num_blocks)
    others = [make_other(seed, num_blocks) for seed in (5, 6)]
    for other in others * 3:
        targets, sources = choose(rng, num_blocks)
        assert other.ask(op="receive", hello=hello, targets=targets, sources=sources) == "received"
        other.content[:, :, targets] = source[:, :, sources]
        assert other.ask(op="digest") == digest(other.content)
    assert digest(end.cache) == digest(source)


def test_a_process_that_dies(make_other: Callable[[int, int], Other]) -> None:
    """Its memory is closed as any other's, and the next one's is opened."""
    end = End(2, 48)
    for seed in (1, 3):
        other = make_other(seed, 48)
        end.greet(other.hello())
        end.receive([5], [6])
        assert torch.equal(end.cache[:, :, 5].cpu().view(torch.int16), other.content[:, :, 6].view(torch.int16))
        other.kill()
        end.hang_up()
    end.cache.zero_()
    assert not end.cache.any()


def test_what_is_not_opened(make_other: Callable[[int, int], Other]) -> None:
    """The sender then tries another way."""
    end = End(2, 48)
    hello = pb.TransferHello.FromString(make_other(1, 48).hello())
    hello.cuda_memory.handle = bytes(len(hello.cuda_memory.handle))
    with pytest.raises(BadMessageError, match="its memory cannot be read") as caught:
        end.greet(hello.SerializeToString())
    assert caught.value.reason is Reason.UNREACHABLE
    assert digest(end.cache) == digest(random_cache(2, 48))


@pytest.mark.parametrize("num_blocks", SIZES)
def test_between_a_gpu_and_a_cpu(num_blocks: int) -> None:
    rng = random.Random(5)
    on_gpu, on_cpu = random_cache(1, num_blocks).to("cuda"), random_cache(2, num_blocks)
    gpu, cpu = block_memory(on_gpu, 2), block_memory(on_cpu, 2)
    assert isinstance(gpu, DeviceBlocks)
    for reader, writer, source, target in ((gpu, cpu, on_gpu, on_cpu), (cpu, gpu, on_cpu, on_gpu)) * 10:
        targets, sources = choose(rng, num_blocks)
        expected = target.cpu().clone()
        expected[:, :, targets] = source.cpu()[:, :, sources]
        piece = np.empty(len(sources) * reader.block_bytes, np.uint8)
        reader.read(np.array(sources), piece)
        blocks = piece_blocks(torch.from_numpy(piece), 6, len(sources))
        writer.write(np.array(targets), blocks.source, blocks.ids)
        assert digest(target) == digest(expected)


def test_copies_do_not_wait_for_steps(make_other: Callable[[int, int], Other]) -> None:
    """Steps run on the thread's own stream; `write` comes back with what it has written while they do."""
    other, end = make_other(1, 5000), End(2, 5000)
    end.greet(other.hello())
    piece = np.empty(2 * end.blocks.block_bytes, np.uint8)
    blocks = piece_blocks(torch.from_numpy(piece), 6, 2)

    def copy() -> None:
        end.receive([3, 4], [7, 8])
        end.blocks.read(np.array([3, 4]), piece)
        end.blocks.write(np.array([9, 10]), blocks.source, blocks.ids)

    copy()  # all that happens once has happened
    end.cache[:, :, :20] = 0
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    step = torch.cuda.Event()
    step.record()
    copy()
    assert not step.query()
    step.synchronize()
    for first in (3, 9):
        ours, theirs = end.cache[:, :, first : first + 2].cpu(), other.content[:, :, 7:9]
        assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))


def through_sockets(transport: str, push: Callable[[list[str], list[int]], object], content: Tensor) -> None:
    """Random blocks of `content`, which are pushed as transfer 1, come to a cache on the GPU."""
    from pagoda.executor.transfer.receiver import Receiver

    num_blocks = content.shape[2]
    target = random_cache(2, num_blocks).to("cuda")
    targets, sources = choose(random.Random(6), num_blocks)
    expected = random_cache(2, num_blocks)
    expected[:, :, targets] = content[:, :, sources]
    with closing(Receiver(target, 2, LAYOUT)) as receiver:
        assert [each.partition(":")[0] for each in receiver.endpoints] == ["cuda", "shm", "tcp"]
        receiver.grant(1, targets, 60)
        push([each for each in receiver.endpoints if each.startswith(transport)], sources)
        arrived = 0
        while arrived < len(targets):
            assert select.select([receiver], [], [], 60)[0], "nothing comes"
            arrived = dict(receiver.take_arrivals()).get(1, arrived)
        assert receiver.take_failures() == []
    assert digest(target) == digest(expected)


@pytest.mark.parametrize("transport", ["cuda", "shm", "tcp"])
def test_from_a_gpu_through_sockets(make_other: Callable[[int, int], Other], transport: str) -> None:
    pytest.importorskip("zmq")
    other = make_other(1, 5000)

    def push(endpoints: list[str], sources: list[int]) -> None:
        assert other.ask(op="push", endpoints=endpoints, sources=sources) == "pushed"

    through_sockets(transport, push, other.content)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_from_a_cpu_through_sockets(transport: str) -> None:
    pytest.importorskip("zmq")
    from pagoda.executor.transfer.sender import Sender

    content = random_cache(1, 5000)
    memory = SharedMemory(content.nbytes)
    cache = torch.frombuffer(memory.memory, dtype=content.dtype).view(content.shape).copy_(content)
    with closing(Sender(cache, 2, LAYOUT, shared_memory=memory)) as sender:
        through_sockets(transport, lambda endpoints, sources: sender.push(endpoints, 1, 0, sources), content)

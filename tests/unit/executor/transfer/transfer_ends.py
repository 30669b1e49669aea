"""Small caches in which every block is another, what waits for news, and a sender that says what a test wants."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
import zmq
from torch import Tensor

from pagoda.executor.transfer.endpoints import Endpoint, parse_endpoint
from pagoda.executor.transfer.nixl_memory import Nixl
from pagoda.executor.transfer.receiver import Receiver
from pagoda.executor.transfer.reports import Reason
from pagoda.executor.transfer.sender import Sender
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

T = TypeVar("T")
# What the fixtures that make them are called with.
MakeReceiver = Callable[..., Receiver]
MakeSender = Callable[..., Sender]

_ARE_YOU_THERE = pb.TransferResponse(receipts=pb.TransferReceipts())

NUM_BLOCKS = 48
SHAPE = (3, 2, NUM_BLOCKS, 4, 2, 8)
BLOCK_BYTES = 3 * 2 * 4 * 2 * 8 * 2
LAYOUT = common_pb2.KvLayout(block_size=4, num_layers=3, num_kv_heads=2, head_dim=8, dtype="bfloat16")
EMPTY = -1

NIXL = Nixl("tcp://127.0.0.1:*") if find_spec("nixl") else None
TRANSPORTS = ("shm", "tcp", *(["nixl"] if NIXL else []))


def full_cache(first: int = 0, num_blocks: int = NUM_BLOCKS) -> Tensor:
    """Every number is another one, as far as 16 bits go; blocks of caches with another `first` are others."""
    shape = (*SHAPE[:2], num_blocks, *SHAPE[3:])
    numbers = torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.int32)
    return (numbers * 7919 % 32749).to(torch.int16).view(shape).view(torch.bfloat16)


def empty_cache() -> Tensor:
    return torch.full(SHAPE, EMPTY, dtype=torch.int16).view(torch.bfloat16)


def shared_sender(cache: Tensor, layout: common_pb2.KvLayout = LAYOUT, **options: Any) -> Sender:
    """Of a copy of `cache` that receivers can read."""
    memory = SharedMemory(cache.nbytes)
    copy = torch.frombuffer(memory.memory, dtype=cache.dtype).view(cache.shape)
    return Sender(copy.copy_(cache), 2, layout, shared_memory=memory, nixl=NIXL, **options)


def block(cache: Tensor, index: int) -> Tensor:
    """Its bits: NaN is a number like any other here."""
    return cache.view(torch.int16)[:, :, index]


def is_empty(cache: Tensor, index: int) -> bool:
    return bool((block(cache, index) == EMPTY).all())


def through(transport: str, receiver: Receiver) -> list[str]:
    """The receiver's endpoints of one kind."""
    chosen = [each for each in receiver.endpoints if each.startswith(f"{transport}://")]
    assert len(chosen) == 1
    return chosen


def wait_for(end: Receiver | Sender, take: Callable[[], T], enough: Callable[[T], bool]) -> T:
    """What `take` returns when it is enough; asked whenever `end` has news."""
    deadline = time.monotonic() + 20
    while not enough(taken := take()):
        assert select.select([end], [], [], max(0, deadline - time.monotonic()))[0], f"no news after {taken}"
    return taken


def wait_for_arrivals(receiver: Receiver, wanted: dict[int, int]) -> None:
    """Until at least so many positions of each transfer have arrived."""
    arrived: dict[int, int] = {}

    def take() -> dict[int, int]:
        arrived.update(receiver.take_arrivals())
        return arrived

    wait_for(receiver, take, lambda _: all(arrived.get(each, 0) >= count for each, count in wanted.items()))


def wait_for_failures(end: Receiver | Sender, wanted: Sequence[tuple[int, Reason]]) -> None:
    """Until there are just these."""
    failures: list[tuple[int, Reason]] = []

    def take() -> list[tuple[int, Reason]]:
        failures.extend(end.take_failures())
        return failures

    assert sorted(wait_for(end, take, lambda taken: len(taken) >= len(wanted))) == sorted(wanted)


def poll(condition: Callable[[], bool], what: str) -> None:
    """For what nothing tells of."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def mapped_sources() -> int:
    """How many caches this process reads."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return sum("pagoda-kv" in "".join(line[5:]) and line[1].startswith("r--") for line in lines)


class RawSender:
    """Speaks the protocol, message by message."""

    def __init__(
        self, endpoint: str, *, piece_bytes: int = 4 * BLOCK_BYTES, shared_memory: pb.SharedMemory | None = None
    ) -> None:
        self.endpoint: Endpoint | None = parse_endpoint(endpoint)
        assert self.endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvtimeo = 10_000
        self._socket.connect(self.endpoint.socket)
        self.hello = pb.TransferHello(
            session=self.endpoint.session,
            layout=LAYOUT,
            block_bytes=BLOCK_BYTES,
            piece_bytes=piece_bytes,
            shared_memory=shared_memory,
        )
        self.hello.layout.num_blocks = NUM_BLOCKS

    def send(self, *frames: bytes) -> pb.TransferResponse:
        """Sends a message; the answer."""
        self._socket.send_multipart(frames)
        while (response := pb.TransferResponse.FromString(self._socket.recv())) == _ARE_YOU_THERE:
            pass
        return response

    def greet(self) -> pb.TransferResponse:
        return self.send(pb.TransferRequest(hello=self.hello).SerializeToString())

    def push(self, push: pb.BlockPush, *content: bytes) -> pb.TransferResponse:
        return self.send(pb.TransferRequest(push=push).SerializeToString(), *content)

    def close(self) -> None:
        self._socket.close()
        self._context.term()

"""A cache on a GPU that gives blocks to another process, and takes some; and such a process, driven by lines on stdin.

python gpu_ends.py <seed> <num_blocks>     <- {"op": "share"}
                                           -> a TransferHello, in hexadecimal
                                           <- {"op": "receive", "hello": "...", "targets": [...], "sources": [...]}
                                           -> "received"
                                           <- {"op": "push", "endpoints": [...], "sources": [...]}
                                           -> "pushed", as transfer 1; needs ZeroMQ
                                           <- {"op": "digest"}
                                           -> the SHA-256 of its cache, in hexadecimal
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from pagoda.executor.transfer.block_memory import block_memory
from pagoda.executor.transfer.cuda_memory import share_cuda
from pagoda.executor.transfer.intake import Intake
from pagoda.executor.transfer.leases import Leases
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

LAYOUT = common_pb2.KvLayout(block_size=4, num_layers=3, num_kv_heads=2, head_dim=8, dtype="bfloat16")


def random_cache(seed: int, num_blocks: int) -> Tensor:
    """On the CPU; any bits, those of NaN among them."""
    shape = (3, 2, num_blocks, 4, 2, 8)
    numbers = torch.randint(-(1 << 15), 1 << 15, shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(torch.int16).view(torch.bfloat16)


def digest(cache: Tensor) -> str:
    return hashlib.sha256(cache.cpu().view(torch.uint8).numpy().tobytes()).hexdigest()


class End:
    """A cache on the GPU, and what reads into it."""

    def __init__(self, seed: int, num_blocks: int) -> None:
        # Small caches then are not at the beginning of their allocation.
        self._before = torch.zeros(1000, device="cuda")
        self.cache = random_cache(seed, num_blocks).to("cuda")
        self.blocks = block_memory(self.cache, 2)
        self.leases = Leases(self.blocks, 64, lambda: None)
        self._intake = Intake(self.leases, LAYOUT, self.blocks, window_bytes=1 << 20, max_links=4, idle_timeout_s=60.0)
        self._last_transfer = 0

    def hello(self) -> bytes:
        """To another end, whose session it does not know."""
        hello = pb.TransferHello(
            layout=LAYOUT,
            block_bytes=self.blocks.block_bytes,
            piece_bytes=self.blocks.block_bytes * 1000,
            cuda_memory=share_cuda(self.cache),
        )
        hello.layout.num_blocks = self.blocks.num_blocks
        return hello.SerializeToString()

    def greet(self, hello: bytes) -> None:
        message = pb.TransferHello.FromString(hello)
        message.session = self.leases.session
        self._intake.hello(b"other", message)

    def receive(self, targets: Sequence[int], sources: Sequence[int], crc32: int | None = None) -> None:
        """Blocks of the other end, which has said hello."""
        self._last_transfer += 1
        self.leases.grant(self._last_transfer, targets, 60.0)
        push = pb.BlockPush(
            transfer_id=self._last_transfer, num_blocks=len(sources), block_ids=pack_u32(sources), crc32=crc32
        )
        self._intake.push(b"other", push, None)
        while not self._intake.advance(b"other"):
            pass

    def hang_up(self) -> None:
        self._intake.drop(b"other")


def main() -> None:
    end = End(int(sys.argv[1]), int(sys.argv[2]))
    senders = []
    for line in sys.stdin:
        order = json.loads(line)
        match order["op"]:
            case "share":
                answer = end.hello().hex()
            case "receive":
                end.greet(bytes.fromhex(order["hello"]))
                end.receive(order["targets"], order["sources"])
                end.hang_up()
                answer = "received"
            case "push":
                from pagoda.executor.transfer.sender import Sender

                senders.append(Sender(end.cache, 2, LAYOUT))
                senders[-1].push(order["endpoints"], 1, 0, order["sources"])
                answer = "pushed"
            case _:
                answer = digest(end.cache)
        print(answer, flush=True)
    for sender in senders:
        sender.close()


if __name__ == "__main__":
    main()

"""What it costs to move KV blocks from one executor process to another.

    python tests/bench/kv_transfer.py

Blocks lie in random order in both caches: the sender's is in shared memory and the receiver's in huge pages, as those
of executors are that prefill and decode. Measured, each beside what bounds it, in turns:

    memcpy      copies the same number of bytes within a process, in one thread and in one piece
    shm         moves them through shared memory, from the first push to the last arrival
    socket      sends them through a bare TCP socket on loopback, from one buffer and into another
    tcp         moves them through TCP on loopback; with checksums, too
    push        of that, what the pushing thread was busy or waited, per GB
    latency     one block, from the call of push to the receiver's news of it

Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
import torch
from google.protobuf.json_format import MessageToDict
from report import circumstances, table

from pagoda.executor.transfer.sender import Sender
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.v1 import common_pb2

LAYOUTS = {
    "bundled": common_pb2.KvLayout(block_size=16, num_layers=4, num_kv_heads=1, head_dim=64, dtype="bfloat16"),
    "0.5B": common_pb2.KvLayout(block_size=16, num_layers=24, num_kv_heads=2, head_dim=64, dtype="bfloat16"),
}
NUM_BYTES = 192 << 20
# Of one step.
PUSH_BYTES = 8 << 20
NUM_SMALL = 200


@dataclass
class Peer:
    """kv_transfer_peer.py."""

    process: subprocess.Popen[str]
    endpoints: dict[str, str]
    raw: socket.socket

    def order(self, **order: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        assert self.hear() == "ready"

    def hear(self) -> Any:
        return _hear(self.process)


def _hear(process: subprocess.Popen[str]) -> Any:
    assert process.stdout
    if not (line := process.stdout.readline()):
        raise SystemExit("the receiving process has ended")
    return json.loads(line)


@contextmanager
def running_peer(layout: common_pb2.KvLayout) -> Iterator[Peer]:
    arguments = json.dumps(MessageToDict(layout, preserving_proto_field_name=True))
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("kv_transfer_peer.py")), arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        told = _hear(process)
        endpoints = {each.partition(":")[0]: each for each in told["endpoints"]}
        with socket.create_connection(("127.0.0.1", told["port"])) as raw:
            yield Peer(process, endpoints, raw)
    finally:
        process.kill()
        process.communicate()


class Bench:
    """One layout, and the processes on both sides of it."""

    def __init__(self, layout: common_pb2.KvLayout, peer: Peer) -> None:
        shape = (layout.num_layers, 2, layout.num_blocks, layout.block_size, layout.num_kv_heads, layout.head_dim)
        self.peer = peer
        num_elements = math.prod(shape)
        memory = SharedMemory(2 * num_elements)
        self.cache = torch.frombuffer(memory.memory, dtype=torch.bfloat16).view(shape).fill_(1)
        self.block_bytes = self.cache.nbytes // layout.num_blocks
        self.blocks = np.random.default_rng(0).permutation(layout.num_blocks)
        self.senders = {
            checksum: Sender(self.cache, 2, layout, shared_memory=memory, checksum=checksum)
            for checksum in (False, True)
        }
        self._ids = itertools.count(1)
        self._bytes = self.cache.view(torch.uint8).view(-1).numpy()
        self._copy = np.ones_like(self._bytes)

    def memcpy(self) -> float:
        """Seconds."""
        began = monotonic_ns()
        np.copyto(self._copy, self._bytes)
        return (monotonic_ns() - began) / 1e9

    def socket(self) -> float:
        self.peer.order(op="raw", num_bytes=len(self._bytes))
        piece = memoryview(self._bytes)[: 1 << 20]
        began = monotonic_ns()
        for _ in range(len(self._bytes) // len(piece)):
            self.peer.raw.sendall(piece)
        return float(self.peer.hear() - began) / 1e9

    def move(self, transport: str, num_blocks: int | None = None, checksum: bool = False) -> tuple[float, float]:
        """Seconds until all is there, and seconds in `push`."""
        blocks, transfer_id = self.blocks[:num_blocks], next(self._ids)
        self.peer.order(op="grant", transfer_id=transfer_id, num_blocks=len(blocks))
        sender, endpoints = self.senders[checksum], [self.peer.endpoints[transport]]
        per_push = max(1, PUSH_BYTES // self.block_bytes)
        began = monotonic_ns()
        for first in range(0, len(blocks), per_push):
            sender.push(endpoints, transfer_id, first, blocks[first : first + per_push])
        pushed = monotonic_ns() - began
        arrived = self.peer.hear() - began
        if failures := sender.take_failures():
            raise SystemExit(f"failed: {failures}")
        return arrived / 1e9, pushed / 1e9

    def close(self) -> None:
        for sender in self.senders.values():
            sender.close()


def measure(name: str, layout: common_pb2.KvLayout, rounds: int) -> tuple[list[str], list[str]]:
    """Its lines in the two tables."""
    block_bytes = 4 * layout.num_layers * layout.block_size * layout.num_kv_heads * layout.head_dim
    layout.num_blocks = NUM_BYTES // block_bytes
    with running_peer(layout) as peer, closing(Bench(layout, peer)) as bench:
        seconds: list[dict[str, float]] = []
        for _ in range(rounds + 1):
            line = {"memcpy": bench.memcpy()}
            line["shm"], line["push shm"] = bench.move("shm")
            line["socket"] = bench.socket()
            line["tcp"], line["push tcp"] = bench.move("tcp")
            line["crc"], _ = bench.move("tcp", checksum=True)
            seconds.append(line)
        latencies = {}
        for transport in ("shm", "tcp"):
            times = sorted(bench.move(transport, num_blocks=1)[0] * 1e6 for _ in range(NUM_SMALL))
            latencies[transport] = f"{statistics.median(times):,.0f} ({times[len(times) * 99 // 100]:,.0f})"
    del seconds[0]  # memory is touched for the first time

    def rate(what: str) -> str:
        return f"{statistics.median(NUM_BYTES / 1e9 / line[what] for line in seconds):.1f}"

    def ratio(what: str, bound: str) -> str:
        ratios = sorted(line[bound] / line[what] for line in seconds)
        return f"{statistics.median(ratios):.0%} ({ratios[0]:.0%} to {ratios[-1]:.0%})"

    size = f"{block_bytes:,}"
    moved = [name, size, rate("memcpy"), rate("shm"), ratio("shm", "memcpy")]
    moved += [rate("socket"), rate("tcp"), ratio("tcp", "socket"), rate("crc")]
    pushes = [
        f"{statistics.median(line[f'push {transport}'] for line in seconds) / NUM_BYTES * 1e12:,.0f}"
        for transport in ("shm", "tcp")
    ]
    return moved, [name, size, *pushes, *latencies.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measure all in turns so often")
    args = parser.parse_args()
    print(circumstances())
    lines = [measure(name, layout, args.rounds) for name, layout in LAYOUTS.items()]
    print(f"After {args.rounds} rounds: {circumstances()}\n")
    print(f"GB/s of {NUM_BYTES >> 20} MiB, medians; ratios are of the same round: median (least to most).\n")
    header = ["model", "bytes per block", "memcpy", "shm", "of memcpy", "socket", "tcp", "of socket", "tcp, checksums"]
    print(table(header, [moved for moved, _ in lines]))
    print("\nms in push per GB, and latency of one block in us: median (p99).\n")
    header = ["model", "bytes per block", "push, shm", "push, tcp", "latency, shm", "latency, tcp"]
    print(table(header, [small for _, small in lines]))


if __name__ == "__main__":
    main()

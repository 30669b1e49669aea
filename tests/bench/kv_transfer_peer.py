"""The receiving process of kv_transfer.py: takes blocks, and bytes on a bare socket, and says when all are there.

Lines of JSON on stdin: {"op": "grant", "transfer_id": 1, "num_blocks": 8} grants a lease on blocks in random order;
{"op": "raw", "num_bytes": 8} reads bytes from the bare socket. Each is answered with "ready", and, when all has
arrived, with the time on the clock that all processes share, in ns.
"""

from __future__ import annotations

import json
import math
import select
import socket
import sys
from time import monotonic_ns

import numpy as np
import torch

from pagoda.executor.huge_pages import private_memory
from pagoda.executor.transfer.receiver import Receiver
from pagoda.v1 import common_pb2

# What one call may read from the bare socket, in bytes.
RAW_BYTES = 1 << 20


def main() -> None:
    layout = common_pb2.KvLayout(**json.loads(sys.argv[1]))
    shape = (layout.num_layers, 2, layout.num_blocks, layout.block_size, layout.num_kv_heads, layout.head_dim)
    memory = private_memory(2 * math.prod(shape))
    receiver = Receiver(torch.frombuffer(memory, dtype=torch.bfloat16).view(shape).fill_(1), 2, layout)
    listener = socket.create_server(("127.0.0.1", 0))
    _tell({"endpoints": receiver.endpoints, "port": listener.getsockname()[1]})
    connection, _ = listener.accept()
    rng, buffer = np.random.default_rng(1), bytearray(RAW_BYTES)
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] == "grant":
            blocks = rng.permutation(layout.num_blocks)[: order["num_blocks"]]
            receiver.grant(order["transfer_id"], blocks, 60)
            _tell("ready")
            _wait_for(receiver, order["num_blocks"])
        else:
            _tell("ready")
            left = order["num_bytes"]
            while left:
                left -= connection.recv_into(buffer, min(left, RAW_BYTES))
        _tell(monotonic_ns())
    connection.close()
    listener.close()
    receiver.close()


def _wait_for(receiver: Receiver, num_blocks: int) -> None:
    arrived: dict[int, int] = {}
    while sum(arrived.values()) < num_blocks:
        if not select.select([receiver], [], [], 10)[0]:
            raise SystemExit(f"of {num_blocks} blocks, there are {arrived}; {receiver.counters()}")
        arrived.update(receiver.take_arrivals())


def _tell(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()

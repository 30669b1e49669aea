"""What an executor tells the scheduler of its transfers."""

from __future__ import annotations

from transfer_ends import (
    BLOCK_BYTES,
    LAYOUT,
    NUM_BLOCKS,
    empty_cache,
    full_cache,
    shared_sender,
    wait_for,
    wait_for_arrivals,
)

from pagoda.executor.transfer.receiver import Receiver
from pagoda.executor.transfers import Transfers
from pagoda.v1.scheduler_pb2 import TransferCounters

_BLOCK_AXIS = 2


def test_both_directions_are_counted() -> None:
    receiver = Receiver(empty_cache(), _BLOCK_AXIS, LAYOUT)
    sender = shared_sender(full_cache())
    transfers = Transfers(receiver, sender, NUM_BLOCKS)
    try:
        before = transfers.stats()
        assert (before.sent, before.received) == (TransferCounters(), TransferCounters())
        receiver.grant(1, [4, 5, 6], 20.0)
        sender.push(receiver.endpoints, 1, 0, [1, 2, 3])
        wait_for_arrivals(receiver, {1: 3})
        sender.push(receiver.endpoints, 2, 0, [1, 2])
        wait_for(sender, sender.take_failures, lambda failures: (2, "refused") in failures)
        # Counters outlive sessions.
        transfers.reset()
        stats = transfers.stats()
    finally:
        transfers.close()
    assert (stats.sent.blocks, stats.sent.bytes) == (5, 5 * BLOCK_BYTES)
    assert (stats.received.blocks, stats.received.bytes) == (3, 3 * BLOCK_BYTES)
    assert stats.sent.seconds > 0
    assert stats.received.seconds > 0
    assert stats.sent.failures == {"refused": 1}
    assert stats.received.late_blocks == 2

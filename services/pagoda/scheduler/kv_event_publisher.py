"""KV events on ZeroMQ, and snapshots for those who missed some; kv_events.proto tells how the two fit together.

A PUB socket never waits: what a subscriber does not read in time is dropped for it alone, and the sequence numbers show
it. A snapshot is copied at once, which takes a few milliseconds per 100,000 blocks, and sent in parts.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import assert_never

import zmq

from pagoda.rpc.arrays import pack_u32
from pagoda.rpc.curve import KeyPair
from pagoda.scheduler.core.kv_events import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    KvEvent,
    KvEvents,
    LaneBlocks,
    LaneChanges,
    Medium,
)
from pagoda.scheduler.transport import bind
from pagoda.v1 import kv_events_pb2 as pb

TOPIC = b"pagoda.kv.v1"

# Batches that may wait for one subscriber; more are dropped.
SEND_HIGH_WATER_MARK = 1024

# In one message of a snapshot, at 64 bytes each: little enough that calls and steps take turns.
MAX_BLOCKS_PER_PART = 4096


class KvEventPublisher:
    """Publishes what `events` collects, on a bound PUB socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, key: KeyPair | None = None) -> None:
        """key: that subscribers must have

        Raises OSError when `endpoint` cannot be bound.
        """
        self.events = KvEvents()
        """The core tells them."""
        self._epoch = secrets.randbits(64)
        self._sequence = 0
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 0)
        if key:
            key.protect_server(self._socket)
        self.endpoint = bind(self._socket, endpoint)

    def publish(self) -> None:
        """One batch, if anything has happened since the last one."""
        if changes := self.events.take():
            self._send(changes)

    def beat(self) -> None:
        """One batch in any case: called at an interval, it shows subscribers whether they have missed something."""
        self._send(self.events.take())

    def snapshot(self) -> Iterator[pb.ListKvBlocksResponse]:
        """All blocks as they are now, however late the parts are read."""
        # What is listed is then what was there after the last batch, and not in the middle of the next.
        self.publish()
        return encode_snapshot(self._epoch, self._sequence, self.events.blocks())

    def close(self) -> None:
        self._socket.close()

    def _send(self, changes: list[LaneChanges]) -> None:
        self._sequence += 1
        batch = encode_batch(self._epoch, self._sequence, changes)
        frames = [TOPIC, self._sequence.to_bytes(8, "big"), batch.SerializeToString()]
        self._socket.send_multipart(frames, zmq.NOBLOCK)


def encode_batch(epoch: int, sequence: int, changes: list[LaneChanges]) -> pb.KvEventBatch:
    batch = pb.KvEventBatch(epoch=epoch, sequence=sequence)
    batch.published_at.GetCurrentTime()
    for lane in changes:
        executor = batch.executors.add(session_id=lane.lane_id, name=lane.name, block_size=lane.block_size)
        for event in lane.events:
            _encode_event(event, executor.events.add())
    return batch


def encode_snapshot(epoch: int, sequence: int, lanes: list[LaneBlocks]) -> Iterator[pb.ListKvBlocksResponse]:
    yield pb.ListKvBlocksResponse(start=pb.KvSnapshotStart(epoch=epoch, sequence=sequence))
    for lane in lanes:
        # One part for a lane with no blocks, too: it tells that there is the lane.
        for first in range(0, len(lane.hashes) or 1, MAX_BLOCKS_PER_PART):
            last = first + MAX_BLOCKS_PER_PART
            yield pb.ListKvBlocksResponse(
                blocks=pb.ExecutorKvBlocks(
                    session_id=lane.lane_id,
                    name=lane.name,
                    block_size=lane.block_size,
                    medium=_encode_medium(lane.medium),
                    hashes=b"".join(lane.hashes[first:last]),
                    parents=b"".join(lane.parents[first:last]),
                )
            )


def _encode_event(event: KvEvent, message: pb.KvEvent) -> None:
    match event:
        case BlocksStored(medium, hashes, parent, token_ids):
            stored = message.stored
            stored.medium = _encode_medium(medium)
            stored.hashes = b"".join(hashes)
            stored.parent = parent
            stored.token_ids = pack_u32(token_ids)
        case BlocksRemoved(medium, hashes):
            message.removed.medium = _encode_medium(medium)
            message.removed.hashes = b"".join(hashes)
        case BlocksCleared():
            message.cleared.SetInParent()
        case _:
            assert_never(event)


def _encode_medium(medium: Medium) -> pb.KvMedium:
    return pb.KV_MEDIUM_DEVICE if medium is Medium.DEVICE else pb.KV_MEDIUM_HOST

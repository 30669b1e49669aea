"""The pushing side: copies blocks out of one cache, and a thread that brings them to their receivers."""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from torch import Tensor

from pagoda.executor.transfer.block_memory import Int64, block_memory
from pagoda.executor.transfer.endpoints import usable
from pagoda.executor.transfer.intake import MAX_PIECE_BYTES
from pagoda.executor.transfer.link import BrokenError, Link, Socket
from pagoda.executor.transfer.outbox import Outbox, Piece
from pagoda.executor.transfer.reports import Counters, Reason, Signal, from_problem
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

logger = logging.getLogger(__name__)

# Failed and cancelled transfers that are remembered: what else is pushed of them is dropped.
_MAX_ENDED = 4096

Peer = tuple[str, ...]
"""A receiver's endpoints."""


@dataclass
class _Connection:
    """To one peer. The link belongs to the thread, all else to the lock."""

    outbox: Outbox
    used_at: float
    link: Link | None = None
    broken: Reason | None = None


class Sender:
    """`push` and `cancel` are for one thread at a time, all else for any."""

    def __init__(
        self,
        cache: Tensor,
        block_axis: int,
        layout: common_pb2.KvLayout,
        *,
        staging_bytes: int = 64 << 20,
        max_peers: int = 64,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 2.0,
        push_wait_s: float = 0.05,
        idle_timeout_s: float = 30.0,
        checksum: bool = False,
    ) -> None:
        """Starts a thread; connects when there is something to push.

        cache, block_axis, layout: as the receivers' are, but for the number of blocks
        staging_bytes: memory per peer for blocks that wait to leave
        max_peers: receivers at a time
        timeout_s: after which blocks that a receiver does not confirm have failed
        connect_timeout_s: for one endpoint of a receiver
        push_wait_s: how long one push may wait for room
        idle_timeout_s: after which an unused connection is closed
        checksum: sent with all blocks, and checked by the receiver: a second or so per GB
        """
        self._blocks = block_memory(cache, block_axis)
        self._blocks_per_piece = max(1, MAX_PIECE_BYTES // self._blocks.block_bytes)
        piece_bytes = self._blocks_per_piece * self._blocks.block_bytes
        self._hello = pb.TransferHello(layout=layout, block_bytes=self._blocks.block_bytes, piece_bytes=piece_bytes)
        self._piece_bytes = piece_bytes
        self._staging_bytes = staging_bytes
        self._max_peers = max_peers
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._push_wait_s = push_wait_s
        self._idle_timeout_s = idle_timeout_s
        self._checksum = checksum
        # Guards all that follows; notified when slots become free.
        self._changed = threading.Condition()
        self._connections: dict[Peer, _Connection] = {}
        self._discarded: list[_Connection] = []
        self._ended: dict[int, None] = {}
        self._failures: dict[int, Reason] = {}
        self._counters = Counters()
        self._stopped = False
        self._news, self._wake = Signal(), Signal()
        self._context: zmq.Context[Socket] = zmq.Context()
        self._thread = threading.Thread(target=self._run, name="kv-send", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when there are failures to take."""
        return self._news.fileno()

    def push(
        self, endpoints: Sequence[str], transfer_id: int, first_position: int, block_ids: Sequence[int] | Int64
    ) -> None:
        """Sends block_ids[i] to position first_position + i of the transfer, to the receiver at `endpoints`.

        When it returns, the blocks may be overwritten. Waits for room, but not long; then the transfer fails with FULL.
        What is pushed of a transfer that has failed or was cancelled is dropped.

        Raises ValueError for blocks that do not exist, and for what is no endpoint.
        """
        ids = np.asarray(block_ids, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._blocks.num_blocks:
            raise ValueError(f"blocks must be in [0, {self._blocks.num_blocks}), got {ids.tolist()}")
        deadline = time.monotonic() + self._push_wait_s
        for start in range(0, len(ids), self._blocks_per_piece):
            part = ids[start : start + self._blocks_per_piece]
            if not self._push_piece(tuple(endpoints), transfer_id, first_position + start, part, deadline):
                return

    def cancel(self, transfer_id: int) -> None:
        """Nothing more of the transfer leaves, and it is not told of.

        What is under way arrives, if the receiver's lease is still valid.
        """
        with self._changed:
            self._end(transfer_id)
            self._failures.pop(transfer_id, None)

    def reset(self) -> None:
        """Forgets all transfers and closes all connections: for a new session, which may use their ids again."""
        with self._changed:
            for peer in list(self._connections):
                self._discard(peer)
            self._ended.clear()
            self._failures.clear()

    def take_failures(self) -> list[tuple[int, Reason]]:
        """Transfers that have failed since the last call, each told of once. The latest ones, where nobody calls."""
        self._news.clear()
        with self._changed:
            failures, self._failures = self._failures, {}
        return list(failures.items())

    def counters(self) -> Counters:
        """A copy."""
        with self._changed:
            return deepcopy(self._counters)

    def close(self) -> None:
        """Ends the thread; what waits is dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._wake.set()
        self._thread.join()
        self._context.term()
        self._wake.close()
        self._news.close()

    # In the thread that pushes.

    def _push_piece(self, peer: Peer, transfer_id: int, first: int, block_ids: Int64, deadline: float) -> bool:
        """False if the transfer has failed."""
        with self._changed:
            reserved = self._reserve(peer, transfer_id, first, len(block_ids), deadline)
        if reserved is None:
            return False
        connection, piece = reserved
        started = time.perf_counter()
        self._blocks.read(block_ids, piece.content)
        with self._changed:
            self._counters.seconds += time.perf_counter() - started
            self._counters.blocks += len(block_ids)
            self._counters.bytes += piece.num_bytes
            if connection.broken:
                self._fail(transfer_id, connection.broken)
            if transfer_id in self._ended:
                connection.outbox.release(piece)
                return False
            connection.outbox.put(piece)
        self._wake.set()
        return True

    def _reserve(
        self, peer: Peer, transfer_id: int, first: int, num_blocks: int, deadline: float
    ) -> tuple[_Connection, Piece] | None:
        """None if the transfer has failed, for want of room or before."""
        connection = self._connection(peer)
        while transfer_id not in self._ended and not self._stopped:
            if connection is None:
                self._fail(transfer_id, Reason.FULL)
            elif connection.broken:
                self._fail(transfer_id, connection.broken)
            else:
                now = time.monotonic()
                num_bytes = num_blocks * self._blocks.block_bytes
                piece = connection.outbox.reserve(transfer_id, first, num_blocks, num_bytes, now)
                if piece is not None:
                    connection.used_at = now
                    return connection, piece
                if not self._changed.wait(deadline - now):
                    self._fail(transfer_id, Reason.FULL)
        return None

    def _connection(self, peer: Peer) -> _Connection | None:
        """None if there are too many, and none is idle."""
        if (connection := self._connections.get(peer)) is None:
            if len(self._connections) >= self._max_peers:
                idle = [(each.used_at, other) for other, each in self._connections.items() if each.outbox.is_idle]
                if not idle:
                    return None
                self._discard(min(idle)[1])
            usable(peer)  # raises here, where somebody is to blame
            connection = _Connection(Outbox(self._staging_bytes, self._piece_bytes), time.monotonic())
            self._connections[peer] = connection
            self._wake.set()
        return connection

    # With the lock.

    def _fail(self, transfer_id: int, reason: Reason) -> None:
        if transfer_id in self._ended:
            return
        self._end(transfer_id)
        self._failures[transfer_id] = reason
        _limit(self._failures)
        self._counters.failures[reason] += 1
        self._news.set()

    def _end(self, transfer_id: int) -> None:
        self._ended[transfer_id] = None
        _limit(self._ended)
        for connection in self._connections.values():
            connection.outbox.drop(transfer_id)
        self._changed.notify_all()

    def _discard(self, peer: Peer) -> None:
        """The thread closes it."""
        connection = self._connections.pop(peer)
        connection.broken = Reason.UNREACHABLE
        self._discarded.append(connection)
        self._changed.notify_all()
        self._wake.set()

    # In the thread of the connections.

    def _run(self) -> None:
        while not self._stopped:
            self._wait()
            with self._changed:
                connections = list(self._connections.items())
            for peer, connection in connections:
                try:
                    self._serve(peer, connection, time.monotonic())
                except BrokenError as error:
                    self._break(peer, connection, error)
                except Exception as error:  # one that nobody has thought of; the thread goes on for the other peers
                    logger.exception("KV blocks: a link has failed")
                    self._break(peer, connection, BrokenError(Reason.UNREACHABLE, f"{type(error).__name__}: {error}"))
            self._close_discarded()
        with self._changed:
            for peer in list(self._connections):
                self._discard(peer)
        self._close_discarded()

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        with self._changed:
            connections = list(self._connections.values())
            deadlines = list(self._deadlines(connections))
        for connection in connections:
            for socket in connection.link.sockets if connection.link else ():
                poller.register(socket, zmq.POLLIN)
        wait_s = min(deadlines, default=math.inf) - time.monotonic()
        poller.poll(None if wait_s == math.inf else max(0, math.ceil(wait_s * 1000)))
        self._wake.clear()

    def _deadlines(self, connections: list[_Connection]) -> Iterator[float]:
        for connection in connections:
            if connection.link is None:
                yield 0.0
            elif (deadline := connection.link.connect_deadline) is not None:
                yield deadline
            oldest = connection.outbox.oldest()
            yield connection.used_at + self._idle_after(connection) if oldest is None else oldest + self._timeout_s

    def _idle_after(self, connection: _Connection) -> float:
        """Well before the receiver gives up the link."""
        opened = connection.link.opened if connection.link else None
        return min(self._idle_timeout_s, opened.idle_timeout_s / 2) if opened else self._idle_timeout_s

    def _serve(self, peer: Peer, connection: _Connection, now: float) -> None:
        """All that can be done now. Raises BrokenError."""
        if (link := connection.link) is None:
            link = connection.link = Link(
                self._context, usable(peer), self._hello, connect_timeout_s=self._connect_timeout_s, now=now
            )
        was_open = link.opened is not None
        for receipts in link.receive(now):
            self._take_receipts(connection, receipts)
        link.check(now)
        with self._changed:
            if link.opened and not was_open:
                connection.outbox.open(link.opened.num_slots, link.opened.mailbox)
                connection.used_at = now
            pieces = list(connection.outbox.sendable())
            oldest = connection.outbox.oldest()
            if pieces:
                self._changed.notify_all()
            elif (
                connection.outbox.is_idle
                and self._connections.get(peer) is connection
                and now >= connection.used_at + self._idle_after(connection)
            ):
                self._discard(peer)
        for piece in pieces:
            self._send(link, piece)
        if oldest is not None and now >= oldest + self._timeout_s:
            raise BrokenError(Reason.TIMEOUT, f"no receipt in {self._timeout_s:g} s")

    def _send(self, link: Link, piece: Piece) -> None:
        push = pb.BlockPush(
            transfer_id=piece.transfer_id,
            first_position=piece.first_position,
            num_blocks=piece.num_blocks,
            slot=piece.index,
        )
        if self._checksum:
            push.crc32 = zlib.crc32(piece.content.data)
        link.send(push, piece.content)

    def _take_receipts(self, connection: _Connection, receipts: pb.TransferReceipts) -> None:
        with self._changed:
            for slot in receipts.slots:
                connection.outbox.receipt(slot)
            for failure in receipts.failures:
                self._fail(failure.transfer_id, from_problem(failure.problem))
            self._changed.notify_all()

    def _break(self, peer: Peer, connection: _Connection, error: BrokenError) -> None:
        logger.warning("KV blocks: lost a peer (%s): %s", error.reason, error)
        with self._changed:
            # Its memory goes with it: ZeroMQ may still hold what was under way.
            if self._connections.get(peer) is connection:
                del self._connections[peer]
            connection.broken = error.reason
            for transfer_id in connection.outbox.transfers():
                self._fail(transfer_id, error.reason)
            self._changed.notify_all()
            self._discarded.append(connection)

    def _close_discarded(self) -> None:
        with self._changed:
            discarded, self._discarded = self._discarded, []
        for connection in discarded:
            if connection.link:
                connection.link.close()


def _limit(table: dict[int, Any]) -> None:
    """Forgets the oldest."""
    if len(table) > _MAX_ENDED:
        del table[next(iter(table))]

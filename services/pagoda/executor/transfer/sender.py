"""The pushing side: a thread that tells receivers which blocks they get, or brings them there."""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq
from torch import Tensor

from pagoda.executor.transfer.block_memory import Bytes, Int64, block_memory
from pagoda.executor.transfer.cuda_memory import share_cuda
from pagoda.executor.transfer.endpoints import usable
from pagoda.executor.transfer.intake import MAX_PIECE_BYTES
from pagoda.executor.transfer.link import BrokenError, Link, Opened, Socket
from pagoda.executor.transfer.nixl_memory import Nixl, NixlMemory
from pagoda.executor.transfer.outbox import Outbox, Piece
from pagoda.executor.transfer.reports import Counters, Reason, Signal, from_problem
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

logger = logging.getLogger(__name__)

# How often readers through NIXL are answered while something is under way, in seconds.
_NIXL_INTERVAL_S = 0.001

# Failed transfers that are remembered: what else is pushed of them is dropped.
_MAX_ENDED = 4096

# For pieces under way to one peer. More is no gain: they are in no processor's cache any more when their turn comes,
# and the receiver needs as much memory at a time as one heap of glibc's allocator has (64 MiB).
_STAGING_BYTES = 32 << 20

Peer = tuple[str, ...]
"""A receiver's endpoints."""


@dataclass
class _Connection:
    """To one peer. Link and staging belong to the thread, all else to the lock."""

    used_at: float
    outbox: Outbox = field(default_factory=Outbox)
    link: Link | None = None
    staging: Bytes | None = None
    """[num_slots, piece_bytes]: pieces under way, where the peer does not read them itself."""


class Sender:
    """Usable from any thread."""

    def __init__(
        self,
        cache: Tensor,
        block_axis: int,
        layout: common_pb2.KvLayout,
        *,
        shared_memory: SharedMemory | None = None,
        nixl: Nixl | None = None,
        staging_bytes: int = _STAGING_BYTES,
        max_peers: int = 64,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 2.0,
        idle_timeout_s: float = 30.0,
        checksum: bool = False,
    ) -> None:
        """Starts a thread; connects when there is something to push.

        cache, block_axis, layout: as the receivers' are, but for the number of blocks
        shared_memory: that the cache is in; without, blocks are brought to receivers on this host, too
        nixl: for receivers that read through it
        staging_bytes: memory per peer for blocks under way
        max_peers: receivers at a time
        timeout_s: after which blocks that a receiver does not confirm have failed
        connect_timeout_s: for one endpoint of a receiver
        idle_timeout_s: after which an unused connection is closed
        checksum: sent with all blocks, and checked by the receiver: a second or so per GB

        Raises OSError when NIXL does not take the cache.
        """
        self._blocks = block_memory(cache, block_axis)
        self._blocks_per_piece = max(1, MAX_PIECE_BYTES // self._blocks.block_bytes)
        self._piece_bytes = self._blocks_per_piece * self._blocks.block_bytes
        self._nixl = NixlMemory(nixl.agent(), cache) if nixl else None
        self._hellos = self._make_hellos(cache, layout, shared_memory)
        # Others may open it as long as it is there.
        self._shared_memory = shared_memory
        self._staging_bytes = staging_bytes
        self._max_peers = max_peers
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._checksum = checksum
        # Guards all that follows.
        self._lock = threading.Lock()
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
        """Brings block_ids[i] to position first_position + i of the transfer, to the receiver at `endpoints`.

        They are read later, and must stay as they are until they have arrived, which the receiver knows, or until the
        transfer does not count any more. What is pushed of a transfer that has failed is dropped.

        Raises ValueError for blocks that do not exist, and for what is no endpoint.
        """
        ids = np.asarray(block_ids, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._blocks.num_blocks:
            raise ValueError(f"blocks must be in [0, {self._blocks.num_blocks}), got {ids.tolist()}")
        with self._lock:
            if transfer_id in self._ended:
                return
            connection = self._connection(tuple(endpoints))
            if connection is None:
                self._fail(transfer_id, Reason.FULL)
                return
            connection.used_at = time.monotonic()
            for start in range(0, len(ids), self._blocks_per_piece):
                part = ids[start : start + self._blocks_per_piece]
                connection.outbox.put(Piece(transfer_id, first_position + start, part))
        self._wake.set()

    def reset(self) -> None:
        """Forgets all transfers and closes all connections: for a new session, which may use their ids again."""
        with self._lock:
            for peer in list(self._connections):
                self._discard(peer)
            self._ended.clear()
            self._failures.clear()

    def take_failures(self) -> list[tuple[int, Reason]]:
        """Transfers that have failed since the last call, each told of once. The latest ones, where nobody calls."""
        self._news.clear()
        with self._lock:
            failures, self._failures = self._failures, {}
        return list(failures.items())

    def counters(self) -> Counters:
        """A copy."""
        with self._lock:
            return deepcopy(self._counters)

    def close(self) -> None:
        """Ends the thread; what waits is dropped."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        if self._nixl:
            self._nixl.close()
        self._context.term()
        self._wake.close()
        self._news.close()

    def _make_hellos(
        self, cache: Tensor, layout: common_pb2.KvLayout, memory: SharedMemory | None
    ) -> dict[str, pb.TransferHello]:
        """By the schemes of the endpoints that can be used."""
        shared = memory.address() if memory else None
        hellos = {"tcp": pb.TransferHello(), "shm": pb.TransferHello(shared_memory=shared)}
        if self._blocks.device.type == "cuda":
            try:
                hellos["cuda"] = pb.TransferHello(cuda_memory=share_cuda(cache))
            except OSError as error:
                logger.warning("KV blocks are brought to processes on this host, too: %s", error)
        if self._nixl:
            hellos["nixl"] = pb.TransferHello(nixl=self._nixl.address())
        for hello in hellos.values():
            hello.layout.MergeFrom(layout)
            hello.layout.num_blocks = self._blocks.num_blocks
            hello.block_bytes, hello.piece_bytes = self._blocks.block_bytes, self._piece_bytes
        return hellos

    # With the lock.

    def _connection(self, peer: Peer) -> _Connection | None:
        """None if there are too many, and none is idle."""
        if (connection := self._connections.get(peer)) is None:
            if len(self._connections) >= self._max_peers:
                idle = [(each.used_at, other) for other, each in self._connections.items() if each.outbox.is_idle]
                if not idle:
                    return None
                self._discard(min(idle)[1])
            usable(peer, self._hellos)  # raises here, where somebody is to blame
            connection = self._connections[peer] = _Connection(time.monotonic())
        return connection

    def _fail(self, transfer_id: int, reason: Reason) -> None:
        if transfer_id in self._ended:
            return
        for connection in self._connections.values():
            connection.outbox.drop(transfer_id)
        self._ended[transfer_id] = None
        self._failures[transfer_id] = reason
        _limit(self._ended)
        _limit(self._failures)
        self._counters.failures[reason] += 1
        self._news.set()

    def _discard(self, peer: Peer) -> None:
        """The thread closes it."""
        self._discarded.append(self._connections.pop(peer))
        self._wake.set()

    # In the thread of the connections.

    def _run(self) -> None:
        while not self._stopped:
            self._wait()
            if self._nixl:
                self._nixl.advance()
            with self._lock:
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
        with self._lock:
            for peer in list(self._connections):
                self._discard(peer)
        self._close_discarded()

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        with self._lock:
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
            if (oldest := connection.outbox.oldest) is not None:
                yield oldest + self._timeout_s
            elif connection.outbox.is_idle:
                yield connection.used_at + self._idle_after(connection)
            if self._nixl and not connection.outbox.is_idle:
                yield time.monotonic() + _NIXL_INTERVAL_S

    def _idle_after(self, connection: _Connection) -> float:
        """Well before the receiver gives up the link."""
        opened = connection.link.opened if connection.link else None
        return min(self._idle_timeout_s, opened.idle_timeout_s / 2) if opened else self._idle_timeout_s

    def _serve(self, peer: Peer, connection: _Connection, now: float) -> None:
        """All that can be done now. Raises BrokenError."""
        if (link := connection.link) is None:
            link = connection.link = Link(
                self._context,
                usable(peer, self._hellos),
                self._hellos,
                connect_timeout_s=self._connect_timeout_s,
                now=now,
            )
        was_open = link.opened is not None
        for receipts in link.receive(now):
            self._take_receipts(connection, receipts)
        link.check(now)
        if link.opened and not was_open:
            self._open(connection, link.opened, now)
        with self._lock:
            pieces = list(connection.outbox.send(now))
            oldest = connection.outbox.oldest
            if (
                connection.outbox.is_idle
                and self._connections.get(peer) is connection
                and now >= connection.used_at + self._idle_after(connection)
            ):
                self._discard(peer)
        for piece in pieces:
            self._send(link, piece, connection.staging)
        if oldest is not None and now >= oldest + self._timeout_s:
            raise BrokenError(Reason.TIMEOUT, f"no receipt in {self._timeout_s:g} s")

    def _open(self, connection: _Connection, opened: Opened, now: float) -> None:
        num_slots = opened.num_slots
        if not opened.reads:
            num_slots = min(num_slots, max(1, self._staging_bytes // self._piece_bytes))
            # Untouched pages cost nothing.
            connection.staging = np.empty((num_slots, self._piece_bytes), np.uint8)
        with self._lock:
            connection.outbox.open(num_slots)
            connection.used_at = now

    def _send(self, link: Link, piece: Piece, staging: Bytes | None) -> None:
        """staging: where the peer cannot read the cache"""
        push = pb.BlockPush(
            transfer_id=piece.transfer_id,
            first_position=piece.first_position,
            num_blocks=len(piece.block_ids),
            slot=piece.slot,
        )
        num_bytes = len(piece.block_ids) * self._blocks.block_bytes
        content = None if staging is None else staging[piece.slot, :num_bytes]
        if content is None:
            push.block_ids = pack_u32(piece.block_ids)
        started = time.perf_counter()
        if content is not None or self._checksum:
            gathered = np.empty(num_bytes, np.uint8) if content is None else content
            self._blocks.read(piece.block_ids, gathered)
            if self._checksum:
                push.crc32 = zlib.crc32(gathered.data)
        seconds = time.perf_counter() - started
        with self._lock:
            self._counters.seconds += seconds
            self._counters.blocks += len(piece.block_ids)
            self._counters.bytes += num_bytes
        link.send(push, content)

    def _take_receipts(self, connection: _Connection, receipts: pb.TransferReceipts) -> None:
        with self._lock:
            for slot in receipts.slots:
                connection.outbox.receipt(slot)
            for failure in receipts.failures:
                self._fail(failure.transfer_id, from_problem(failure.problem))

    def _break(self, peer: Peer, connection: _Connection, error: BrokenError) -> None:
        logger.warning("KV blocks: lost a peer (%s): %s", error.reason, error)
        with self._lock:
            # Its memory goes with it: ZeroMQ may still hold what was under way.
            if self._connections.get(peer) is connection:
                del self._connections[peer]
            for transfer_id in connection.outbox.transfers():
                self._fail(transfer_id, error.reason)
            self._discarded.append(connection)

    def _close_discarded(self) -> None:
        with self._lock:
            discarded, self._discarded = self._discarded, []
        for connection in discarded:
            if connection.link:
                connection.link.close()


def _limit(table: dict[int, Any]) -> None:
    """Forgets the oldest."""
    if len(table) > _MAX_ENDED:
        del table[next(iter(table))]

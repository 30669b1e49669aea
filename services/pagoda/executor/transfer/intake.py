"""The receiver's side of the protocol: what becomes of a sender's messages. Knows nothing of sockets and threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from pagoda.executor.transfer.block_memory import BlockMemory, Blocks, Bytes, as_tensor, piece_blocks
from pagoda.executor.transfer.cuda_memory import open_cuda
from pagoda.executor.transfer.leases import Leases
from pagoda.executor.transfer.nixl_memory import Nixl, NixlSource
from pagoda.executor.transfer.reports import Reason, to_problem
from pagoda.executor.transfer.shared_memory import open_shared
from pagoda.executor.transfer.source import MappedSource, Source
from pagoda.rpc.arrays import unpack_u32
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

# Of a piece, unless a single block is larger. Beside its copy, a piece costs 100 to 200 us: most of it, if pieces were
# much smaller. With larger ones ending a lease waits longer: a copy, of 0.6 ms or so, holds the leases' lock.
MAX_PIECE_BYTES = 8 << 20

# A sender fills a piece while another one is on its way.
_MIN_SLOTS = 2


class BadMessageError(Exception):
    """A sender that breaks the rules; its link ends."""

    def __init__(self, message: str, reason: Reason = Reason.REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


@dataclass
class Link:
    """One sender."""

    session: str
    num_blocks: int
    """Of the sender."""
    source: Source | None
    last_message: float
    reading: deque[pb.BlockPush] = field(default_factory=deque)
    """Pieces that are read from `source`, in this order."""
    receipts: pb.TransferReceipts = field(default_factory=pb.TransferReceipts)
    """Not yet sent."""


class Intake:
    """All links of a receiver, by the names that ZeroMQ gives their connections."""

    def __init__(
        self,
        leases: Leases,
        layout: common_pb2.KvLayout,
        blocks: BlockMemory,
        *,
        window_bytes: int,
        max_links: int,
        idle_timeout_s: float,
        nixl: Nixl | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """blocks: of the cache
        window_bytes: of what is under way on one link
        nixl: where memory may be read through it
        """
        self.links: dict[bytes, Link] = {}
        self.max_piece_bytes = max(MAX_PIECE_BYTES, blocks.block_bytes)
        self._leases = leases
        self._layout = layout
        self._blocks = blocks
        self._window_bytes = window_bytes
        self._max_links = max_links
        self._idle_timeout_s = idle_timeout_s
        self._nixl = nixl
        self._clock = clock

    def hello(self, name: bytes, hello: pb.TransferHello) -> pb.TransferWelcome:
        """Begins a link. Raises BadMessageError."""
        self.drop(name)
        if hello.session != self._leases.session:
            raise BadMessageError("the session of this endpoint is over")
        self._check_layout(hello)
        if len(self.links) >= self._max_links:
            raise BadMessageError(f"there are {self._max_links} senders; no more are possible", Reason.FULL)
        num_blocks = hello.layout.num_blocks
        num_slots = max(_MIN_SLOTS, self._window_bytes // hello.piece_bytes)
        try:
            source = self._open(hello, num_slots)
        except OSError as error:
            raise BadMessageError(f"its memory cannot be read: {error}", Reason.UNREACHABLE) from None
        self.links[name] = Link(hello.session, num_blocks, source, self._clock())
        return pb.TransferWelcome(num_slots=num_slots, idle_timeout_s=self._idle_timeout_s)

    def push(self, name: bytes, push: pb.BlockPush, content: Bytes | None) -> None:
        """Writes a piece that has come with its message, or begins to read it.

        content: what came with the message

        Raises BadMessageError for what no sender of ours does.
        """
        link = self.links.get(name)
        if link is None:
            raise BadMessageError("the link is over")
        link.last_message = self._clock()
        if link.source is None:
            num_bytes = push.num_blocks * self._blocks.block_bytes
            if content is None or not len(content) == num_bytes > 0:
                raise BadMessageError(f"{push.num_blocks} blocks take {num_bytes} bytes, which did not come")
            self._write(link, push, piece_blocks(as_tensor(content), self._blocks.num_parts, push.num_blocks))
            return
        if not len(push.block_ids) == 4 * push.num_blocks > 0:
            raise BadMessageError(f"{push.num_blocks} blocks, and {len(push.block_ids)} bytes to say which")
        block_ids = unpack_u32(push.block_ids).astype(np.int64)
        if block_ids.max() >= link.num_blocks:
            raise BadMessageError(f"block {block_ids.max()} of {link.num_blocks}")
        link.source.begin(block_ids)
        link.reading.append(push)

    def advance(self, name: bytes) -> bool:
        """Writes what has been read on a link. False: there is more to come. Raises BadMessageError, as `push` does."""
        link = self.links.get(name)
        if link is None or link.source is None:
            return True
        try:
            while blocks := link.source.take():
                self._write(link, link.reading.popleft(), blocks)
        except OSError as error:
            raise BadMessageError(f"its memory cannot be read: {error}", Reason.UNREACHABLE) from None
        return not link.reading

    def drop(self, name: bytes) -> None:
        """Ends a link, if there is one."""
        if (link := self.links.pop(name, None)) and link.source:
            link.source.close()

    def over(self) -> list[bytes]:
        """Links of earlier sessions, and those over which nothing has come for too long."""
        oldest = self._clock() - self._idle_timeout_s
        return [
            name
            for name, link in self.links.items()
            if link.session != self._leases.session or link.last_message < oldest
        ]

    def _open(self, hello: pb.TransferHello, num_slots: int) -> Source | None:
        """Raises OSError."""
        blocks, num_blocks = self._blocks, hello.layout.num_blocks
        shape, num_bytes = (blocks.num_parts, num_blocks, blocks.part_bytes), num_blocks * blocks.block_bytes
        match hello.WhichOneof("source"):
            case "shared_memory":
                return MappedSource(as_tensor(open_shared(hello.shared_memory, num_bytes)).view(shape))
            case "cuda_memory":
                return MappedSource(open_cuda(hello.cuda_memory, num_bytes, blocks.device).view(shape))
            case "nixl":
                if self._nixl is None:
                    raise OSError("it is told of through NIXL, which is not used here")
                return NixlSource(
                    self._nixl.agent(),
                    hello.nixl,
                    blocks,
                    num_blocks=num_blocks,
                    num_slots=num_slots,
                    piece_bytes=hello.piece_bytes,
                )
        return None

    def _write(self, link: Link, push: pb.BlockPush, blocks: Blocks) -> None:
        crc32 = push.crc32 if push.HasField("crc32") else None
        if crc32 is not None and link.source:
            # What is checked is what will be written, whatever its owner does meanwhile.
            blocks = Blocks(blocks.source[:, torch.from_numpy(blocks.ids)].cpu(), np.arange(len(blocks.ids)))
        problem = self._leases.write(link.session, push.transfer_id, push.first_position, blocks, crc32)
        link.receipts.slots.append(push.slot)
        if problem is not None:
            link.receipts.failures.add(transfer_id=push.transfer_id, problem=to_problem(problem))

    def _check_layout(self, hello: pb.TransferHello) -> None:
        names = [field.name for field in self._layout.DESCRIPTOR.fields if field.name != "num_blocks"]
        theirs = {name: getattr(hello.layout, name) for name in names} | {"block_bytes": hello.block_bytes}
        ours = {name: getattr(self._layout, name) for name in names} | {"block_bytes": self._blocks.block_bytes}
        if differing := [f"{name} {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]:
            raise BadMessageError(f"the sender's blocks have {'; '.join(differing)}", Reason.LAYOUT)
        if not 0 < hello.piece_bytes <= self.max_piece_bytes or hello.piece_bytes % self._blocks.block_bytes:
            raise BadMessageError(
                f"pieces of {hello.piece_bytes} bytes are no whole blocks, or more than {self.max_piece_bytes}",
                Reason.LAYOUT,
            )


def as_bytes(buffer: memoryview) -> Bytes:
    """The bytes of a frame, without a copy."""
    return np.frombuffer(buffer, np.uint8)

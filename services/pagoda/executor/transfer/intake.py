"""The receiver's side of the protocol: what becomes of a sender's messages. Knows nothing of sockets and threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pagoda.executor.transfer.leases import Leases
from pagoda.executor.transfer.mailbox import Mailbox
from pagoda.executor.transfer.reports import Reason, to_problem
from pagoda.executor.transfer.slots import Bytes
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

# Of a piece, unless a single block is larger. Beside its copies, a piece costs 100 to 200 us: most of it, if pieces
# were much smaller. With larger ones ending a lease waits longer: a copy, of 0.2 ms or so, holds the leases' lock.
MAX_PIECE_BYTES = 4 << 20

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
    num_slots: int
    mailbox: Mailbox | None
    last_message: float
    receipts: pb.TransferReceipts = field(default_factory=pb.TransferReceipts)
    """Not yet sent."""

    def close(self) -> None:
        if self.mailbox:
            self.mailbox.close()


class Intake:
    """All links of a receiver, by the names that ZeroMQ gives their connections."""

    def __init__(
        self,
        leases: Leases,
        layout: common_pb2.KvLayout,
        block_bytes: int,
        *,
        window_bytes: int,
        max_links: int,
        idle_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """window_bytes: memory for what is under way on one link"""
        self.links: dict[bytes, Link] = {}
        self.max_piece_bytes = max(MAX_PIECE_BYTES, block_bytes)
        self._leases = leases
        self._layout = layout
        self._block_bytes = block_bytes
        self._window_bytes = window_bytes
        self._max_links = max_links
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock

    def hello(self, name: bytes, hello: pb.TransferHello) -> pb.TransferWelcome:
        """Begins a link. Raises BadMessageError."""
        self.drop(name)
        if hello.session != self._leases.session:
            raise BadMessageError("the session of this endpoint is over")
        self._check_layout(hello)
        if len(self.links) >= self._max_links:
            raise BadMessageError(f"there are {self._max_links} senders; no more are possible", Reason.FULL)
        num_slots = max(_MIN_SLOTS, self._window_bytes // hello.piece_bytes)
        try:
            mailbox = Mailbox(num_slots, hello.piece_bytes) if hello.mailbox else None
        except OSError as error:
            raise BadMessageError(f"no memory for a mailbox: {error}", Reason.FULL) from None
        self.links[name] = Link(hello.session, num_slots, mailbox, self._clock())
        address = mailbox.address() if mailbox else None
        return pb.TransferWelcome(num_slots=num_slots, mailbox=address, idle_timeout_s=self._idle_timeout_s)

    def push(self, name: bytes, push: pb.BlockPush, content: Bytes | None) -> None:
        """Writes a piece, and notes its receipt.

        content: what came with the message

        Raises BadMessageError for what no sender of ours does.
        """
        link = self.links.get(name)
        if link is None:
            raise BadMessageError("the link is over")
        link.last_message = self._clock()
        piece = self._piece(link, push, content)
        crc32 = push.crc32 if push.HasField("crc32") else None
        problem = self._leases.write(link.session, push.transfer_id, push.first_position, push.num_blocks, piece, crc32)
        link.receipts.slots.append(push.slot)
        if problem is not None:
            link.receipts.failures.add(transfer_id=push.transfer_id, problem=to_problem(problem))

    def drop(self, name: bytes) -> None:
        """Ends a link, if there is one."""
        if link := self.links.pop(name, None):
            link.close()

    def over(self) -> list[bytes]:
        """Links of earlier sessions, and those over which nothing has come for too long."""
        oldest = self._clock() - self._idle_timeout_s
        return [
            name
            for name, link in self.links.items()
            if link.session != self._leases.session or link.last_message < oldest
        ]

    def _piece(self, link: Link, push: pb.BlockPush, content: Bytes | None) -> Bytes:
        num_bytes = push.num_blocks * self._block_bytes
        if push.slot >= link.num_slots and link.mailbox:
            raise BadMessageError(f"slot {push.slot} of {link.num_slots}")
        piece = link.mailbox.memory[push.slot, :num_bytes] if link.mailbox else content
        if piece is None or len(piece) != num_bytes:
            raise BadMessageError(f"{push.num_blocks} blocks take {num_bytes} bytes, which did not come")
        return piece

    def _check_layout(self, hello: pb.TransferHello) -> None:
        names = [field.name for field in self._layout.DESCRIPTOR.fields if field.name != "num_blocks"]
        theirs = {name: getattr(hello.layout, name) for name in names} | {"block_bytes": hello.block_bytes}
        ours = {name: getattr(self._layout, name) for name in names} | {"block_bytes": self._block_bytes}
        if differing := [f"{name} {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]:
            raise BadMessageError(f"the sender's blocks have {'; '.join(differing)}", Reason.LAYOUT)
        if not 0 < hello.piece_bytes <= self.max_piece_bytes or hello.piece_bytes % self._block_bytes:
            raise BadMessageError(
                f"pieces of {hello.piece_bytes} bytes are no whole blocks, or more than {self.max_piece_bytes}",
                Reason.LAYOUT,
            )


def as_bytes(buffer: memoryview) -> Bytes:
    """The bytes of a frame, without a copy."""
    return np.frombuffer(buffer, np.uint8)

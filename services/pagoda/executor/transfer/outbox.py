"""What waits to pass one link, and what is under way on it: slots, pieces and credits. Pure; its user has a lock.

A piece is copied into a slot before the link is there, too: at first into staging memory of the sender's own. Through
TCP it leaves from there. Where there is a mailbox, it is copied on to it, and later pieces go there at once, as soon as
no earlier one waits in staging memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pagoda.executor.transfer.slots import Bytes, Slots


@dataclass(slots=True)
class Piece:
    """Some blocks of a transfer, and where their bytes are."""

    slots: Slots
    index: int
    transfer_id: int
    first_position: int
    num_blocks: int
    num_bytes: int
    reserved_at: float

    @property
    def content(self) -> Bytes:
        return self.slots.memory[self.index, : self.num_bytes]


class Outbox:
    """Pieces of one link, in three states: reserved (being filled), waiting, under way."""

    def __init__(self, staging_bytes: int, piece_bytes: int) -> None:
        self._staging = Slots(np.empty((max(1, staging_bytes // piece_bytes), piece_bytes), np.uint8))
        self._mailbox: Slots | None = None
        # Pieces that may be under way.
        self._credits = 0
        self._waiting: deque[Piece] = deque()
        # By the index of their slot, oldest first.
        self._under_way: dict[int, Piece] = {}

    def open(self, num_slots: int, mailbox: Bytes | None) -> None:
        """The link is there: pieces may go, through `mailbox` if there is one."""
        self._credits = num_slots
        self._mailbox = None if mailbox is None else Slots(mailbox)

    def reserve(
        self, transfer_id: int, first_position: int, num_blocks: int, num_bytes: int, now: float
    ) -> Piece | None:
        """A piece to fill; None if no slot is free."""
        # None overtakes what waits for a slot of the mailbox: it would have the slot, and not be sent before that.
        behind_staged = bool(self._waiting) and self._waiting[0].slots is self._staging
        slots = self._staging if self._mailbox is None or behind_staged else self._mailbox
        if (index := slots.take()) is None:
            return None
        return Piece(slots, index, transfer_id, first_position, num_blocks, num_bytes, now)

    def put(self, piece: Piece) -> None:
        """The piece is filled, and waits."""
        self._waiting.append(piece)

    def release(self, piece: Piece) -> None:
        """The piece is not wanted any more; it was reserved, or waited and was taken out."""
        piece.slots.give(piece.index)

    def sendable(self) -> Iterator[Piece]:
        """Takes the pieces that can go now; they are under way."""
        while self._waiting and len(self._under_way) < self._credits and self._move_to_mailbox(self._waiting[0]):
            piece = self._waiting.popleft()
            self._under_way[piece.index] = piece
            yield piece

    def receipt(self, index: int) -> Piece | None:
        """The peer is done with a piece. None if there is none under way there."""
        if (piece := self._under_way.pop(index, None)) is not None:
            self.release(piece)
        return piece

    def drop(self, transfer_id: int) -> None:
        """Takes back what waits of a transfer. What is under way stays so until its receipt."""
        for piece in [each for each in self._waiting if each.transfer_id == transfer_id]:
            self._waiting.remove(piece)
            self.release(piece)

    def transfers(self) -> set[int]:
        """Of which something waits or is under way."""
        return {piece.transfer_id for piece in (*self._waiting, *self._under_way.values())}

    @property
    def is_idle(self) -> bool:
        """Nothing is reserved, waits or is under way."""
        return self._staging.all_free and (self._mailbox is None or self._mailbox.all_free)

    def oldest(self) -> float | None:
        """When the oldest piece was reserved that has no receipt; None if there is none."""
        first = [*self._waiting][:1] + list(self._under_way.values())[:1]
        return min((piece.reserved_at for piece in first), default=None)

    def _move_to_mailbox(self, piece: Piece) -> bool:
        """Whether the piece can be sent from where it is now."""
        if self._mailbox is None or piece.slots is self._mailbox:
            return True
        if (index := self._mailbox.take()) is None:
            return False
        self._mailbox.memory[index, : piece.num_bytes] = piece.content
        self.release(piece)
        piece.slots, piece.index = self._mailbox, index
        return True

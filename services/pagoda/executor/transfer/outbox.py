"""What waits to pass one link, and what is under way on it. Pure; its user has a lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pagoda.executor.transfer.block_memory import Int64


@dataclass(slots=True)
class Piece:
    """Some blocks of a transfer."""

    transfer_id: int
    first_position: int
    block_ids: Int64
    slot: int = -1
    """While it is under way: a number that no other such piece of the link has."""
    sent_at: float = 0.0


class Outbox:
    """Pieces of one link."""

    def __init__(self) -> None:
        self._waiting: deque[Piece] = deque()
        # By slot, oldest first.
        self._under_way: dict[int, Piece] = {}
        # The one that came back last is used first: its memory, if it has any, is still in the processor's cache.
        self._free: list[int] = []

    def open(self, num_slots: int) -> None:
        """The link is there; so many pieces may be under way."""
        self._free = list(range(num_slots - 1, -1, -1))

    def put(self, piece: Piece) -> None:
        """The piece waits."""
        self._waiting.append(piece)

    def send(self, now: float) -> Iterator[Piece]:
        """Takes the pieces that can go now; they are under way."""
        while self._waiting and self._free:
            piece = self._waiting.popleft()
            piece.slot, piece.sent_at = self._free.pop(), now
            self._under_way[piece.slot] = piece
            yield piece

    def receipt(self, slot: int) -> None:
        """The peer is done with a piece, if there is one under way there."""
        if self._under_way.pop(slot, None):
            self._free.append(slot)

    def drop(self, transfer_id: int) -> None:
        """Takes back what waits of a transfer. What is under way stays so until its receipt."""
        self._waiting = deque(piece for piece in self._waiting if piece.transfer_id != transfer_id)

    def transfers(self) -> set[int]:
        """Of which something waits or is under way."""
        return {piece.transfer_id for piece in (*self._waiting, *self._under_way.values())}

    @property
    def is_idle(self) -> bool:
        """Nothing waits or is under way."""
        return not self._waiting and not self._under_way

    @property
    def oldest(self) -> float | None:
        """When the oldest piece was sent that has no receipt; None if there is none."""
        return next((piece.sent_at for piece in self._under_way.values()), None)

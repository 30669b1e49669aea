"""What waits to pass a link: slots, credits, and what moves to a mailbox."""

from __future__ import annotations

import numpy as np

from pagoda.executor.transfer.outbox import Outbox, Piece

PIECE = 4


def fill(outbox: Outbox, transfer_id: int, value: int, now: float = 0.0) -> Piece | None:
    piece = outbox.reserve(transfer_id, 0, 1, 3, now)
    if piece is not None:
        piece.content[:] = value
        outbox.put(piece)
    return piece


def sent(outbox: Outbox) -> list[int]:
    """The values of the pieces that can go."""
    return [int(piece.content[0]) for piece in outbox.sendable()]


def test_staging_is_bounded() -> None:
    outbox = Outbox(staging_bytes=2 * PIECE + 1, piece_bytes=PIECE)
    assert fill(outbox, 1, 7)
    assert fill(outbox, 1, 8)
    assert fill(outbox, 1, 9) is None
    assert sent(outbox) == []  # there is no link yet
    assert outbox.transfers() == {1}


def test_credits_bound_what_is_under_way() -> None:
    outbox = Outbox(4 * PIECE, PIECE)
    pieces = [fill(outbox, 1, value, now=value) for value in (7, 8, 9)]
    assert outbox.oldest() == 7
    outbox.open(num_slots=2, mailbox=None)
    assert sent(outbox) == [7, 8]
    assert sent(outbox) == []
    assert pieces[0]
    outbox.receipt(pieces[0].index)
    assert outbox.oldest() == 8
    assert sent(outbox) == [9]
    assert outbox.receipt(3) is None  # nothing is under way there
    for piece in pieces[1:]:
        assert piece
        outbox.receipt(piece.index)
    assert outbox.is_idle
    assert outbox.oldest() is None


def test_staged_pieces_move_to_the_mailbox() -> None:
    outbox = Outbox(4 * PIECE, PIECE)
    for value in (7, 8, 9):
        fill(outbox, 1, value)
    mailbox = np.zeros((2, PIECE), np.uint8)
    outbox.open(num_slots=2, mailbox=mailbox)
    assert sent(outbox) == [7, 8]
    assert mailbox.tolist() == [[7, 7, 7, 0], [8, 8, 8, 0]]
    # Not into the mailbox, where it would keep the slot that the one before it waits for.
    outbox.receipt(0)
    assert fill(outbox, 2, 5)
    assert mailbox[0].tolist() == [7, 7, 7, 0]
    assert sent(outbox) == [9]
    outbox.receipt(1)
    assert sent(outbox) == [5]
    # None waits any more: at once into the mailbox, which bounds what is pushed now.
    outbox.receipt(0)
    assert fill(outbox, 2, 6)
    assert mailbox[0].tolist() == [6, 6, 6, 0]
    assert sent(outbox) == [6]
    assert fill(outbox, 2, 4) is None


def test_a_dropped_transfer_gives_its_slots_back() -> None:
    outbox = Outbox(3 * PIECE, PIECE)
    outbox.open(num_slots=1, mailbox=None)
    for transfer_id, value in ((1, 7), (2, 8), (1, 9)):
        fill(outbox, transfer_id, value)
    assert sent(outbox) == [7]
    outbox.drop(1)
    assert fill(outbox, 3, 5)
    assert fill(outbox, 3, 6) is None  # 7 is under way until its receipt
    outbox.receipt(0)
    assert sent(outbox) == [8]
    assert not outbox.is_idle


def test_a_reserved_slot_keeps_the_link() -> None:
    outbox = Outbox(PIECE, PIECE)
    piece = outbox.reserve(1, 0, 1, 3, 0.0)
    assert piece
    assert not outbox.is_idle
    outbox.release(piece)
    assert outbox.is_idle

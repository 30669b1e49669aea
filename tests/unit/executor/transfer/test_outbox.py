"""What waits to pass a link: slots, and what becomes of pieces."""

from __future__ import annotations

import numpy as np

from pagoda.executor.transfer.outbox import Outbox, Piece


def put(outbox: Outbox, *transfer_ids: int) -> None:
    for transfer_id in transfer_ids:
        outbox.put(Piece(transfer_id, 0, np.arange(1)))


def sent(outbox: Outbox, now: float = 0.0) -> list[tuple[int, int]]:
    """(transfer, slot) of the pieces that can go."""
    return [(piece.transfer_id, piece.slot) for piece in outbox.send(now)]


def test_nothing_goes_before_there_is_a_link() -> None:
    outbox = Outbox()
    put(outbox, 1)
    assert sent(outbox) == []
    assert outbox.oldest is None
    assert not outbox.is_idle
    assert outbox.transfers() == {1}


def test_slots_bound_what_is_under_way() -> None:
    outbox = Outbox()
    put(outbox, 7, 8, 9)
    outbox.open(num_slots=2)
    assert sent(outbox, now=1.0) == [(7, 0), (8, 1)]
    assert sent(outbox, now=2.0) == []
    outbox.receipt(0)
    assert sent(outbox, now=3.0) == [(9, 0)]
    assert outbox.oldest == 1.0
    outbox.receipt(1)
    assert outbox.oldest == 3.0
    outbox.receipt(1)  # nothing is under way there
    outbox.receipt(5)
    outbox.receipt(0)
    assert outbox.is_idle
    assert outbox.oldest is None


def test_the_slot_that_came_back_last_is_used_first() -> None:
    outbox = Outbox()
    outbox.open(num_slots=4)
    put(outbox, 1, 2, 3)
    sent(outbox)
    outbox.receipt(0)
    outbox.receipt(2)
    put(outbox, 4, 5)
    assert sent(outbox) == [(4, 2), (5, 0)]


def test_what_waits_of_a_dropped_transfer_does_not_go() -> None:
    outbox = Outbox()
    outbox.open(num_slots=1)
    put(outbox, 1, 2, 1)
    assert sent(outbox) == [(1, 0)]
    outbox.drop(1)
    assert outbox.transfers() == {1, 2}  # one piece is under way until its receipt
    outbox.receipt(0)
    assert sent(outbox) == [(2, 0)]
    outbox.receipt(0)
    assert outbox.is_idle

"""Leases alone: what may be written, once, and by whom."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagoda.executor.transfer.block_memory import Blocks, block_memory
from pagoda.executor.transfer.leases import Leases
from pagoda.executor.transfer.reports import Reason

NUM_BLOCKS, BLOCK_BYTES = 12, 8


class Bench:
    """Leases on NUM_BLOCKS blocks of 8 bytes, with a clock that a test moves."""

    def __init__(self, max_leases: int = 8) -> None:
        self.cache = torch.zeros(2, NUM_BLOCKS, 4, dtype=torch.uint8)
        self.now = 100.0
        self.calls = 0
        self.leases = Leases(block_memory(self.cache, 1), max_leases, self._on_news, lambda: self.now)

    def _on_news(self) -> None:
        self.calls += 1

    def write(self, transfer_id: int, first: int, values: list[int], crc: int | None = None) -> Reason | None:
        """Blocks that are filled with one value each."""
        piece = np.tile(np.array(values, np.uint8).repeat(4), 2).reshape(2, -1, 4)
        blocks = Blocks(torch.from_numpy(piece), np.arange(len(values)))
        return self.leases.write(self.leases.session, transfer_id, first, blocks, crc)

    def values(self) -> list[int]:
        flat = self.cache.movedim(1, 0).reshape(NUM_BLOCKS, -1)
        assert (flat == flat[:, :1]).all()
        return flat[:, 0].tolist()

    def expect(self, **blocks: int) -> None:
        """b3=7: block 3 has the value 7; all others 0"""
        assert self.values() == [blocks.get(f"b{index}", 0) for index in range(NUM_BLOCKS)]


def test_positions_are_written_to_their_blocks() -> None:
    bench = Bench()
    bench.leases.grant(5, [9, 2, 4], 1.0)
    assert bench.write(5, 1, [11, 12]) is None
    bench.expect(b2=11, b4=12)
    assert bench.leases.take_arrivals() == [(5, 2)]
    assert bench.leases.take_arrivals() == []
    assert bench.write(5, 0, [10]) is None
    assert bench.leases.take_arrivals() == [(5, 3)]
    assert bench.calls == 2
    counters = bench.leases.counters()
    assert (counters.blocks, counters.bytes) == (3, 3 * BLOCK_BYTES)
    # All is there: the lease is over, and the blocks can be leased again.
    assert bench.write(5, 0, [99]) is Reason.REFUSED
    bench.leases.grant(6, [9], 1.0)
    bench.expect(b9=10, b2=11, b4=12)


def test_a_position_is_written_once() -> None:
    bench = Bench()
    bench.leases.grant(5, [0, 1, 2, 3], 1.0)
    bench.write(5, 1, [11])
    assert bench.write(5, 0, [20, 21, 22]) is None
    bench.expect(b0=20, b1=11, b2=22)
    assert bench.leases.take_arrivals() == [(5, 3)]
    counters = bench.leases.counters()
    assert (counters.blocks, counters.duplicate_blocks) == (3, 1)


@pytest.mark.parametrize(
    ("transfer_id", "first", "count"), [(6, 0, 1), (5, 2, 1), (5, 1, 2), (5, 2**32 - 1, 1), (5, 0, 0)]
)
def test_what_no_lease_covers_is_dropped(transfer_id: int, first: int, count: int) -> None:
    bench = Bench()
    bench.leases.grant(5, [3, 4], 1.0)
    assert bench.write(transfer_id, first, [7] * count) is Reason.REFUSED
    bench.expect()
    assert bench.leases.counters().late_blocks == count
    # The lease itself is as it was.
    assert bench.write(5, 0, [1, 2]) is None


def test_revoked_leases_write_nothing() -> None:
    bench = Bench()
    bench.leases.grant(5, [3, 4], 1.0)
    bench.write(5, 0, [1])
    bench.leases.revoke(5)
    assert bench.write(5, 1, [2]) is Reason.REFUSED
    bench.expect(b3=1)
    assert bench.leases.take_arrivals() == []
    bench.leases.revoke(5)
    bench.leases.revoke(77)


def test_leases_end_at_their_deadline() -> None:
    bench = Bench()
    bench.leases.grant(5, [3, 4], 1.0)
    bench.leases.grant(6, [5], 0.5)
    bench.leases.grant(7, [6], 9.0)
    assert bench.leases.next_deadline == 100.5
    bench.now = 100.5
    bench.leases.expire()
    assert bench.leases.take_failures() == [(6, Reason.TIMEOUT)]
    assert bench.leases.next_deadline == 101.0
    assert bench.write(5, 0, [1]) is None
    # Nobody has looked at the clock, and still nothing is written.
    bench.now = 101.0
    assert bench.write(5, 1, [2]) is Reason.REFUSED
    assert bench.leases.take_failures() == [(5, Reason.TIMEOUT)]
    bench.leases.expire()
    assert bench.leases.take_failures() == []
    bench.expect(b3=1)
    assert bench.leases.counters().failures == {Reason.TIMEOUT: 2}


def test_corrupt_pieces_end_their_lease() -> None:
    bench = Bench()
    bench.leases.grant(5, [3, 4], 1.0)
    assert bench.write(5, 0, [1], crc=zlib.crc32(bytes([1] * 8))) is None
    assert bench.write(5, 1, [2], crc=zlib.crc32(bytes([1] * 8))) is Reason.CORRUPT
    assert bench.write(5, 1, [2]) is Reason.REFUSED
    bench.expect(b3=1)
    assert bench.leases.take_failures() == [(5, Reason.CORRUPT)]


def test_a_reset_begins_another_session() -> None:
    bench = Bench()
    old = bench.leases.session
    bench.leases.grant(5, [3, 4], 1.0)
    bench.write(5, 0, [1])
    bench.leases.reset()
    assert bench.leases.take_arrivals() == []
    # The same id, and a sender of the session before.
    bench.leases.grant(5, [3, 4], 1.0)
    blocks = Blocks(torch.full((2, 1, 4), 9, dtype=torch.uint8), np.arange(1))
    assert bench.leases.write(old, 5, 1, blocks, None) is Reason.REFUSED
    bench.expect(b3=1)
    assert bench.write(5, 1, [2]) is None


@pytest.mark.parametrize(
    ("transfer_id", "blocks", "message"),
    [
        (5, [1], "transfer 5 has a lease"),
        (6, [7, 3], r"blocks \[3\] belong to another lease"),
        (6, [12], r"distinct blocks in \[0, 12\)"),
        (6, [-1], "distinct blocks"),
        (6, [1, 1], "distinct blocks"),
        (6, [], "distinct blocks"),
        (-1, [1], "no u64"),
        (1 << 64, [1], "no u64"),
    ],
)
def test_impossible_leases(transfer_id: int, blocks: list[int], message: str) -> None:
    bench = Bench()
    bench.leases.grant(5, [3, 4], 1.0)
    with pytest.raises(ValueError, match=message):
        bench.leases.grant(transfer_id, blocks, 1.0)
    bench.leases.grant((1 << 64) - 1, [1, 7], 1.0)


def test_leases_are_bounded() -> None:
    bench = Bench(max_leases=2)
    bench.leases.grant(1, [1], 1.0)
    bench.leases.grant(2, [2], 1.0)
    with pytest.raises(ValueError, match="there are 2 leases"):
        bench.leases.grant(3, [3], 1.0)
    bench.leases.revoke(1)
    bench.leases.grant(3, [3], 1.0)
    # Two have arrived, and nobody has taken note.
    bench.write(2, 0, [1])
    bench.write(3, 0, [1])
    with pytest.raises(ValueError, match="there are 2 leases"):
        bench.leases.grant(4, [4], 1.0)
    bench.leases.take_arrivals()
    bench.leases.grant(4, [4], 1.0)


class RandomTraffic(RuleBasedStateMachine):
    """Any order of all that can happen; `expected` is what each block must hold."""

    ids = st.integers(0, 4)

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(max_leases=3)
        self.expected = [0] * NUM_BLOCKS
        self.open: dict[int, tuple[list[int], set[int], float]] = {}
        self.counts: dict[int, int] = {}
        self.old_sessions = ["an invented one"]
        self.value = 0

    @rule(
        transfer_id=ids,
        blocks=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=5, unique=True),
        s=st.integers(1, 4),
    )
    def grant(self, transfer_id: int, blocks: list[int], s: int) -> None:
        taken = {each for lease, _, _ in self.open.values() for each in lease}
        possible = transfer_id not in self.open and not taken & set(blocks) and len(self.open) < 3
        possible &= len(self.counts) < 3
        try:
            self.bench.leases.grant(transfer_id, blocks, s)
        except ValueError:
            # Failures that were not taken count, too, so more may be refused than this model knows of.
            assert not possible or self.bench.leases.take_failures()
        else:
            assert possible
            self.open[transfer_id] = (blocks, set(), self.bench.now + s)

    @rule(
        transfer_id=ids, first=st.integers(0, 5), count=st.integers(0, 5), corrupt=st.sampled_from([None, False, True])
    )
    def push(self, transfer_id: int, first: int, count: int, corrupt: bool | None) -> None:
        values = [self._next_value() for _ in range(count)]
        content = np.tile(np.array(values, np.uint8).repeat(4), 2).tobytes()
        crc = None if corrupt is None else zlib.crc32(content) ^ corrupt
        outcome = self.bench.write(transfer_id, first, values, crc)
        blocks, arrived, deadline = self.open.get(transfer_id, ([], set(), 0.0))
        if deadline <= self.bench.now:
            self.open.pop(transfer_id, None)
            assert outcome is Reason.REFUSED
        elif not 0 < count <= len(blocks) - first:
            assert outcome is Reason.REFUSED
        elif corrupt:
            assert outcome is Reason.CORRUPT
            del self.open[transfer_id]
        else:
            assert outcome is None
            for position, value in enumerate(values, first):
                if position not in arrived:
                    self.expected[blocks[position]] = value
                    arrived.add(position)
            self.counts[transfer_id] = len(arrived)
            if len(arrived) == len(blocks):
                del self.open[transfer_id]

    @rule(transfer_id=ids, first=st.integers(0, 4))
    def push_of_another_session(self, transfer_id: int, first: int) -> None:
        blocks = Blocks(torch.full((2, 1, 4), 255, dtype=torch.uint8), np.arange(1))
        for session in self.old_sessions:
            assert self.bench.leases.write(session, transfer_id, first, blocks, None) is Reason.REFUSED

    @rule(transfer_id=ids)
    def revoke(self, transfer_id: int) -> None:
        self.bench.leases.revoke(transfer_id)
        self.open.pop(transfer_id, None)
        self.counts.pop(transfer_id, None)

    @rule(seconds=st.integers(1, 3), look=st.booleans())
    def time_passes(self, seconds: int, look: bool) -> None:
        self.bench.now += seconds
        if look:
            self.bench.leases.expire()
            self.open = {each: lease for each, lease in self.open.items() if lease[2] > self.bench.now}

    @rule()
    def take(self) -> None:
        assert dict(self.bench.leases.take_arrivals()) == self.counts
        self.counts = {}
        self.bench.leases.take_failures()

    @precondition(lambda self: len(self.old_sessions) < 4)
    @rule()
    def reset(self) -> None:
        self.old_sessions.append(self.bench.leases.session)
        self.bench.leases.reset()
        self.open, self.counts = {}, {}

    @invariant()
    def blocks_hold_what_they_must(self) -> None:
        assert self.bench.values() == self.expected

    def _next_value(self) -> int:
        self.value = self.value % 250 + 1
        return self.value


TestRandomTraffic = RandomTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)

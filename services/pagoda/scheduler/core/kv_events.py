"""Which KV blocks can be found on each executor, and what has changed since it was last asked.

The events are for routers that send requests where their prefix is. Who takes them all has the same picture as who
looks at what is held now: both come from the same calls. This module knows hashes; not blocks, rows or requests.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias


class Medium(IntEnum):
    """Where a block is; it can be in both. The values are the wire values."""

    DEVICE = 1
    HOST = 2


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Blocks can be found from now on.

    On the device, in the order of a chain: the first comes right behind `parent`, and so on; token_ids are theirs.
    In host memory, in no particular order and without the rest: they are on the device, too.
    """

    medium: Medium
    hashes: list[bytes]
    parent: bytes = b""
    token_ids: array[int] = field(default_factory=lambda: array("I"))


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks can no longer be found on `medium`."""

    medium: Medium
    hashes: list[bytes]


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """The executor has left: the last of its events."""


KvEvent: TypeAlias = BlocksStored | BlocksRemoved | BlocksCleared


@dataclass(frozen=True, slots=True)
class LaneChanges:
    """Events of one lane, in the order in which they happened."""

    lane_id: str
    name: str
    block_size: int
    events: list[KvEvent]


@dataclass(frozen=True, slots=True)
class LaneBlocks:
    """What one lane holds on one medium. Parallel: hashes[i] comes right behind parents[i]."""

    lane_id: str
    name: str
    block_size: int
    medium: Medium
    hashes: list[bytes]
    parents: list[bytes]


class LaneKvEvents:
    """The blocks of one lane. The lane calls it; a call costs about as much as filling a dictionary."""

    def __init__(self, lane_id: str, name: str, block_size: int) -> None:
        self.lane_id = lane_id
        self.name = name
        self.block_size = block_size
        # By medium: the parent of each block that is there.
        self._device: dict[bytes, bytes] = {}
        self._host: dict[bytes, bytes] = {}
        self._events: list[KvEvent] = []

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def stored(self, hashes: Sequence[bytes], parent: bytes, token_ids: array[int]) -> None:
        """A chain of blocks, of which none could be found in the cache, now can.

        hashes: at least one
        parent: what the first comes right behind, the root of its chain included
        token_ids: [len(hashes) * block_size]
        """
        self._device.update(zip(hashes, (parent, *hashes), strict=False))
        last = self._events[-1] if self._events else None
        if isinstance(last, BlocksStored) and last.medium is Medium.DEVICE and last.hashes[-1] == parent:
            last.hashes.extend(hashes)
            last.token_ids.extend(token_ids)
        else:
            self._events.append(BlocksStored(Medium.DEVICE, list(hashes), parent, token_ids[:]))

    def removed(self, hashes: Sequence[bytes]) -> None:
        """Blocks that could be found in the cache cannot any more; at least one."""
        for block_hash in hashes:
            del self._device[block_hash]
        self._note_removed(Medium.DEVICE, hashes)

    def offloaded(self, block_hash: bytes) -> None:
        """A block that can still be found in the cache is written to host memory, too."""
        self._host[block_hash] = self._device[block_hash]
        last = self._events[-1] if self._events else None
        if isinstance(last, BlocksStored) and last.medium is Medium.HOST:
            last.hashes.append(block_hash)
        else:
            self._events.append(BlocksStored(Medium.HOST, [block_hash]))

    def dropped(self, block_hash: bytes) -> None:
        """A block is no longer in host memory."""
        del self._host[block_hash]
        self._note_removed(Medium.HOST, (block_hash,))

    def take(self) -> LaneChanges:
        """The events since it was last asked."""
        events, self._events = self._events, []
        return LaneChanges(self.lane_id, self.name, self.block_size, events)

    def blocks(self) -> list[LaneBlocks]:
        """What is held now, as a copy: one entry per medium."""
        return [
            LaneBlocks(self.lane_id, self.name, self.block_size, medium, list(held), list(held.values()))
            for medium, held in ((Medium.DEVICE, self._device), (Medium.HOST, self._host))
        ]

    def check_integrity(self, device: Collection[bytes], host: Collection[bytes]) -> list[str]:
        """Broken invariants, as sentences. device, host: the blocks that can be found there."""
        return [
            f"{len(told.keys() ^ there)} {place} blocks are there and were not told of, or the reverse"
            for place, told, there in (("device", self._device, set(device)), ("host", self._host, set(host)))
            if told.keys() != there
        ]

    def _note_removed(self, medium: Medium, hashes: Sequence[bytes]) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, BlocksRemoved) and last.medium is medium:
            last.hashes.extend(hashes)
        else:
            self._events.append(BlocksRemoved(medium, list(hashes)))


class KvEvents:
    """All lanes of a cell."""

    def __init__(self) -> None:
        self._lanes: dict[str, LaneKvEvents] = {}
        self._cleared: list[LaneChanges] = []

    def add_lane(self, lane_id: str, name: str, block_size: int) -> LaneKvEvents:
        """An executor joins, with nothing."""
        lane = self._lanes[lane_id] = LaneKvEvents(lane_id, name, block_size)
        return lane

    def remove_lane(self, lane_id: str) -> None:
        """An executor leaves. What happened to its blocks since the last `take` is of no interest any more."""
        lane = self._lanes.pop(lane_id)
        self._cleared.append(LaneChanges(lane_id, lane.name, lane.block_size, [BlocksCleared()]))

    def take(self) -> list[LaneChanges]:
        """What has happened since it was last asked, by lane; lanes to which nothing has happened are left out."""
        cleared, self._cleared = self._cleared, []
        return [*cleared, *(lane.take() for lane in self._lanes.values() if lane.has_events)]

    def blocks(self) -> list[LaneBlocks]:
        """What all lanes hold now, as a copy. It includes what the next `take` tells."""
        return [blocks for lane in self._lanes.values() for blocks in lane.blocks()]

"""The host memory of one executor: full KV blocks for which its cache had no room; the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import KeysView


class HostBlocks:
    """Which host block holds which content."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Least recently used first.
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_blocks - 1, -1, -1))
        # Content that the step in the making reads or writes: the same step must not overwrite it.
        self._pinned: set[bytes] = set()

    @property
    def num_used(self) -> int:
        return len(self._slots)

    @property
    def hashes(self) -> KeysView[bytes]:
        return self._slots.keys()

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._slots

    def read(self, block_hash: bytes) -> int:
        """The host block with that content, which stays there at least until `unpin`."""
        self._slots.move_to_end(block_hash)
        self._pinned.add(block_hash)
        return self._slots[block_hash]

    def write(self, block_hash: bytes) -> tuple[int, bytes | None] | None:
        """A host block for new content, and the content that is dropped for it.

        None where nothing is to be written: it is there already, or nothing can be dropped.
        """
        if block_hash in self._slots:
            self._slots.move_to_end(block_hash)
            return None
        dropped = None
        if self._free:
            slot = self._free.pop()
        else:
            dropped = next(iter(self._slots), None)
            if dropped is None or dropped in self._pinned:
                return None
            slot = self._slots.pop(dropped)
        self._slots[block_hash] = slot
        self._pinned.add(block_hash)
        return slot, dropped

    def unpin(self) -> None:
        """The step is made."""
        self._pinned.clear()

    def check_integrity(self) -> list[str]:
        """Broken invariants, as sentences."""
        places = sorted([*self._slots.values(), *self._free])
        return [] if places == list(range(self.num_blocks)) else [f"host blocks are lost or held twice: {places}"]

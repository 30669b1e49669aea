"""The KV blocks of one executor: who holds which, and which still hold a prefix that a later request can use.

A block is in exactly one of three states:

    free        nobody holds it and its content is worthless
    referenced  one or more rows hold it (several when they share a prefix)
    cached      nobody holds it, its content can be found; evicted least recently used first

Content is found in two ways. A full block has the hash of everything up to its end. The last, partly filled block of
a sequence is its tail: it is found by the hash of what comes before it, and the tokens in it are compared; who
uses it goes on in a copy. The pool knows block ids and hashes, not requests.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, KeysView, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tail(NamedTuple):
    """The first len(token_ids) slots of a block hold those tokens."""

    block_id: int
    token_ids: array[int]


class BlockPool:
    """num_free + num_referenced + num_cached == num_blocks, always."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.evicted: list[tuple[int, bytes]] = []
        """Full blocks that could still be found when `allocate` or `make_room` took them, and their hashes; the caller
        empties it."""
        self._enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_by_hash: dict[bytes, int] = {}
        # By the hash of what comes before: one tail each, the latest. The reverse: a block is the tail of at most one.
        self._tails: dict[bytes, Tail] = {}
        self._tail_parents: dict[int, bytes] = {}
        # What is being computed, and by whom.
        self._expected: dict[bytes, int] = {}
        # Taken from the end.
        self._free = list(range(num_blocks - 1, -1, -1))
        # Least recently used first.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free ones, then cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def ref_counts(self) -> NDArray[np.int32]:
        """[num_blocks]: how many rows hold each block."""
        return np.array(self._ref_counts, np.int32)

    def cached_mask(self) -> NDArray[np.bool_]:
        """[num_blocks]: who is cached."""
        mask = np.zeros(self.num_blocks, np.bool_)
        mask[list(self._cached)] = True
        return mask

    @property
    def hashes(self) -> KeysView[bytes]:
        """Full blocks that can be found."""
        return self._block_by_hash.keys()

    def find(self, block_hash: bytes) -> int | None:
        """The block with that content."""
        return self._block_by_hash.get(block_hash)

    def find_chain(self, chain: Sequence[bytes], most: int) -> list[int]:
        """The blocks of the longest known prefix of `chain`, no more than `most`."""
        found: list[int] = []
        get = self._block_by_hash.get
        for block_hash in chain[:most]:
            block_id = get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def find_tail(self, parent: bytes, token_ids: array[int], first: int, last: int) -> Tail | None:
        """A block behind `parent` that begins like tokens [first, last); the tail holds what both have in common."""
        tail = self._tails.get(parent)
        if tail is None:
            return None
        count = 0
        for mine, other in zip(token_ids[first:last], tail.token_ids, strict=False):
            if mine != other:
                break
            count += 1
        return Tail(tail.block_id, tail.token_ids[:count]) if count else None

    def count_expected(self, chain: Sequence[bytes], first: int) -> int:
        """How many hashes of `chain` from `first` are being computed now, without a gap, and so will soon be found."""
        count = 0
        while first + count < len(chain) and chain[first + count] in self._expected:
            count += 1
        return count

    def num_available_besides(self, block_ids: Iterable[int]) -> int:
        """What `allocate` could hand out once `block_ids` were shared."""
        count, ref_counts = len(self._free) + len(self._cached), self._ref_counts
        for block_id in block_ids:
            if not ref_counts[block_id]:
                count -= 1
        return count

    def share(self, block_ids: Iterable[int]) -> None:
        """Takes one more reference on blocks that were found."""
        ref_counts = self._ref_counts
        for block_id in block_ids:
            if ref_counts[block_id] == 0:
                del self._cached[block_id]
            ref_counts[block_id] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks of unknown content with one reference each; None when there are not as many."""
        free = self._free
        if count > len(free) + len(self._cached):
            return None
        num_free = min(count, len(free))
        block_ids = free[len(free) - num_free :]
        del free[len(free) - num_free :]
        block_ids.reverse()
        if num_free < count:
            block_ids += self._evict(count - num_free)
        ref_counts = self._ref_counts
        for block_id in block_ids:
            ref_counts[block_id] = 1
        return block_ids

    def make_room(self, count: int) -> None:
        """Evicts until `count` blocks are free, or none is cached."""
        missing = min(count - len(self._free), len(self._cached))
        if missing > 0:
            self._free += reversed(self._evict(missing))

    def release(self, block_ids: Sequence[int]) -> None:
        """Drops one reference on each block of a block table.

        The end of a sequence is evicted before its beginning: without its beginning it would be of no use.
        """
        ref_counts, hashes, tail_parents = self._ref_counts, self._hashes, self._tail_parents
        for block_id in reversed(block_ids):
            count = ref_counts[block_id] - 1
            assert count >= 0, f"block {block_id} is released more often than it was taken"
            ref_counts[block_id] = count
            if count == 0:
                if hashes[block_id] is None and block_id not in tail_parents:
                    self._free.append(block_id)
                else:
                    self._cached[block_id] = None

    def expect(self, hashes: Iterable[bytes], owner: int) -> None:
        """`owner` computes blocks of this content, until `unexpect`. Of several owners the last one counts."""
        self._expected.update(dict.fromkeys(hashes, owner))

    def unexpect(self, hashes: Iterable[bytes], owner: int) -> None:
        expected = self._expected
        for block_hash in hashes:
            if expected.get(block_hash) == owner:
                del expected[block_hash]

    def remember(self, block_id: int, block_hash: bytes) -> int:
        """Makes a referenced block, which is now full, findable by its hash.

        Returns the block that is found by it from now on: where another one has the same content already, that one.
        """
        assert self._ref_counts[block_id] > 0, f"block {block_id} is remembered while nobody holds it"
        if not self._enable_prefix_caching:
            return block_id
        known = self._block_by_hash.setdefault(block_hash, block_id)
        if known == block_id:
            self._hashes[block_id] = block_hash
        return known

    def remember_tail(self, block_id: int, parent: bytes, token_ids: array[int]) -> None:
        """Makes the first slots of a referenced block findable: they hold `token_ids`, which come behind `parent`."""
        assert self._ref_counts[block_id] > 0, f"block {block_id} is remembered while nobody holds it"
        if not self._enable_prefix_caching or not token_ids:
            return
        if known := self._tails.get(parent):
            if known.token_ids[: len(token_ids)] == token_ids:
                return  # It holds all that, and perhaps more.
            self._forget_tail(known.block_id)
        if block_id in self._tail_parents:
            self._forget_tail(block_id)
        self._tails[parent] = Tail(block_id, token_ids)
        self._tail_parents[block_id] = parent

    def check_integrity(self, tables: Mapping[str, Sequence[int]]) -> list[str]:
        """Broken invariants, as sentences. tables: the block table of everyone who holds blocks, by name."""
        violations: list[str] = []
        owners: defaultdict[int, list[str]] = defaultdict(list)
        for name, table in tables.items():
            for block_id in table:
                owners[block_id].append(name)
        free, cached = Counter(self._free), set(self._cached)
        for block_id, ref_count in enumerate(self._ref_counts):
            if len(owners[block_id]) != ref_count:
                names = ", ".join(owners[block_id]) or "nobody"
                violations.append(f"block {block_id} has {ref_count} references and is held by {names}")
            states = free[block_id] + (block_id in cached) + (ref_count > 0)
            if states != 1:
                violations.append(f"block {block_id} is in {states} of the states free, cached and referenced")
            block_hash = self._hashes[block_id]
            can_be_found = block_hash is not None or block_id in self._tail_parents
            if block_id in cached and not can_be_found:
                violations.append(f"block {block_id} is cached and cannot be found")
            if block_id in free and can_be_found:
                violations.append(f"block {block_id} is free and can still be found")
            if block_hash is not None and self._block_by_hash.get(block_hash) != block_id:
                violations.append(f"block {block_id} has a hash that leads to another block")
        if len(self._block_by_hash) != sum(block_hash is not None for block_hash in self._hashes):
            violations.append(f"{len(self._block_by_hash)} hashes can be found, which is not the number of blocks")
        if {tail.block_id: parent for parent, tail in self._tails.items()} != self._tail_parents:
            violations.append("the tails and their blocks do not match")
        if not self._enable_prefix_caching and (self._cached or self._tails or self._block_by_hash):
            violations.append("blocks can be found although prefix caching is off")
        return violations

    def _forget_tail(self, block_id: int) -> None:
        """A block that nobody holds and that now cannot be found becomes free."""
        del self._tails[self._tail_parents.pop(block_id)]
        if self._hashes[block_id] is None and self._ref_counts[block_id] == 0:
            del self._cached[block_id]
            self._free.append(block_id)

    def _evict(self, count: int) -> list[int]:
        """Takes the least recently used blocks out of the cache; nothing in them can be found any more."""
        hashes, block_by_hash, tail_parents, evicted = (
            self._hashes,
            self._block_by_hash,
            self._tail_parents,
            self.evicted,
        )
        pop = self._cached.popitem
        block_ids = [pop(False)[0] for _ in range(count)]
        for block_id in block_ids:
            if block_id in tail_parents:
                del self._tails[tail_parents.pop(block_id)]
            if (block_hash := hashes[block_id]) is not None:
                hashes[block_id] = None
                del block_by_hash[block_hash]
                evicted.append((block_id, block_hash))
        return block_ids

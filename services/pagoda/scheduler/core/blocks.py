"""The KV blocks of one executor: who holds which, and which still hold a prefix that a later request can use.

A block is in exactly one of three states:

    free        nobody holds it and its content is worthless
    referenced  one or more rows hold it (several when they share a prefix)
    cached      nobody holds it, its content is addressable by hash; evicted least recently used first

The pool knows block ids and hashes, not tokens and not requests.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence


class BlockPool:
    """num_free + num_referenced + num_cached == num_blocks, always."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self._enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_by_hash: dict[bytes, int] = {}
        # What blocks will hold once they are computed: the hash of each, and the first block for each hash.
        self._expected_hashes: list[bytes | None] = [None] * num_blocks
        self._expected_by_hash: dict[bytes, int] = {}
        self._free = deque(range(num_blocks))
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

    def find_prefix(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of the chain `hashes`. Takes no reference."""
        found: list[int] = []
        for block_hash in hashes:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def count_expected(self, hashes: Sequence[bytes]) -> int:
        """How many of the first of `hashes` are being computed now, and so will soon be found."""
        count = 0
        for block_hash in hashes:
            if block_hash not in self._expected_by_hash:
                break
            count += 1
        return count

    def num_available_besides(self, block_ids: Sequence[int]) -> int:
        """What `allocate` could hand out once `block_ids` were shared."""
        return self.num_available - sum(not self._ref_counts[block_id] for block_id in block_ids)

    def share(self, block_ids: Sequence[int]) -> None:
        """Takes one more reference on each of `block_ids`, which `find_prefix` returned."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._cached[block_id]
            self._ref_counts[block_id] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks of unknown content with one reference each; None when there are not as many."""
        if count > self.num_available:
            return None
        block_ids = [self._free.popleft() if self._free else self._evict() for _ in range(count)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        return block_ids

    def release(self, block_ids: Sequence[int]) -> None:
        """Drops one reference on each block of a block table.

        The end of a sequence is evicted before its beginning: without its beginning it would be of no use.
        """
        for block_id in reversed(block_ids):
            assert self._ref_counts[block_id] > 0, f"block {block_id} is released more often than it was taken"
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._forget_expected(block_id)
                if self._hashes[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._cached[block_id] = None

    def expect(self, block_ids: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Says what referenced blocks will hold: each is remembered or released later. Parallel."""
        if self._enable_prefix_caching:
            for block_id, block_hash in zip(block_ids, hashes, strict=True):
                self._expected_hashes[block_id] = block_hash
                self._expected_by_hash.setdefault(block_hash, block_id)

    def remember(self, block_id: int, block_hash: bytes) -> None:
        """Makes a referenced block, whose content is now computed, addressable by its hash.

        Where another block has the same content already, that one stays the addressable one and this one becomes
        free when its last reference goes.
        """
        assert self._ref_counts[block_id] > 0, f"block {block_id} is remembered while nobody holds it"
        self._forget_expected(block_id)
        if self._enable_prefix_caching and block_hash not in self._block_by_hash:
            self._block_by_hash[block_hash] = block_id
            self._hashes[block_id] = block_hash

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
            if block_id in cached and block_hash is None:
                violations.append(f"block {block_id} is cached without a hash")
            if block_id in free and block_hash is not None:
                violations.append(f"block {block_id} is free and still has a hash")
            if self._expected_hashes[block_id] is not None and ref_count != 1:
                violations.append(f"block {block_id} is expected to be computed by {ref_count} owners")
            if block_hash is not None and self._block_by_hash.get(block_hash) != block_id:
                violations.append(f"block {block_id} has a hash that leads to another block")
        if len(self._block_by_hash) != sum(block_hash is not None for block_hash in self._hashes):
            violations.append(f"{len(self._block_by_hash)} hashes are addressable, which is not the number of blocks")
        return violations

    def _forget_expected(self, block_id: int) -> None:
        block_hash = self._expected_hashes[block_id]
        if block_hash is not None:
            self._expected_hashes[block_id] = None
            if self._expected_by_hash.get(block_hash) == block_id:
                del self._expected_by_hash[block_hash]

    def _evict(self) -> int:
        block_id, _ = self._cached.popitem(last=False)
        block_hash = self._hashes[block_id]
        assert block_hash is not None
        del self._block_by_hash[block_hash]
        self._hashes[block_id] = None
        return block_id

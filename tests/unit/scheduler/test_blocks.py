"""Block pools of a few blocks: exact ids and eviction order."""

from __future__ import annotations

from array import array

import pytest

from pagoda.scheduler.core.blocks import BlockPool
from pagoda.scheduler.core.hashes import extend_chain


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_referenced, pool.num_cached


def fill(pool: BlockPool, *hashes: bytes) -> list[int]:
    """Takes a block for each hash, as a row that has computed them would."""
    block_ids = pool.allocate(len(hashes))
    assert block_ids is not None
    for block_id, block_hash in zip(block_ids, hashes, strict=True):
        pool.remember(block_id, block_hash)
    return block_ids


def test_blocks_are_handed_out_in_order_and_come_back() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert counts(pool) == (1, 3, 0)
    pool.release([0, 1, 2])
    assert counts(pool) == (4, 0, 0)
    assert pool.allocate(4) == [3, 2, 1, 0]


def test_too_many_blocks_are_none_and_change_nothing() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(2) is None
    assert counts(pool) == (1, 3, 0)
    assert pool.allocate(0) == []


def test_released_blocks_with_content_stay_cached_and_are_found() -> None:
    pool = BlockPool(4)
    table = fill(pool, b"a", b"ab", b"abc")
    pool.release(table)
    assert counts(pool) == (1, 0, 3)
    assert pool.find_prefix([b"a", b"ab", b"x"]) == [0, 1]
    assert pool.find_prefix([b"x", b"ab"]) == []
    pool.share([0, 1])
    assert counts(pool) == (1, 2, 1)
    assert pool.check_integrity({"r": [0, 1]}) == []


def test_free_blocks_go_before_cached_ones_and_ends_before_beginnings() -> None:
    pool = BlockPool(6)
    pool.release(fill(pool, b"a", b"ab", b"abc"))  # 0 1 2
    pool.release(fill(pool, b"x", b"xy"))  # 3 4
    assert pool.allocate(1) == [5]
    assert pool.allocate(2) == [2, 1]
    assert pool.find_prefix([b"a", b"ab"]) == [0]
    assert pool.allocate(3) == [0, 4, 3]
    assert pool.find_prefix([b"a"]) == pool.find_prefix([b"x"]) == []
    assert pool.check_integrity({"r": [5, 2, 1, 0, 4, 3]}) == []


def test_use_makes_a_cached_block_the_last_to_go() -> None:
    pool = BlockPool(3)
    for name in (b"a", b"b", b"c"):
        pool.release(fill(pool, name))
    pool.share(pool.find_prefix([b"a"]))
    pool.release([0])
    assert pool.allocate(3) == [1, 2, 0]


def test_shared_blocks_are_released_by_their_last_owner() -> None:
    pool = BlockPool(3)
    first = fill(pool, b"a", b"ab")
    pool.share(first)
    pool.release(first)
    assert counts(pool) == (1, 2, 0)
    assert pool.num_available_besides(first) == 1
    pool.release(first)
    assert counts(pool) == (1, 0, 2)
    assert pool.num_available_besides(first) == 1


def test_a_duplicate_is_not_addressable_and_becomes_free() -> None:
    pool = BlockPool(3)
    first, second = fill(pool, b"a"), fill(pool, b"a")
    assert pool.find_prefix([b"a"]) == first == [0]
    pool.release(second)
    assert counts(pool) == (2, 1, 0)
    pool.release(first)
    assert counts(pool) == (2, 0, 1)
    assert pool.check_integrity({}) == []


def test_blocks_under_way_are_expected_until_they_are_there_or_given_up() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    assert first is not None
    assert second is not None
    pool.expect(first, [b"a", b"ab"])
    pool.expect(second, [b"x", b"ab"])
    assert pool.count_expected([b"a", b"ab", b"abc"]) == 2
    assert pool.count_expected([b"y", b"a"]) == 0
    pool.remember(0, b"a")
    assert pool.count_expected([b"a"]) == 0
    assert pool.find_prefix([b"a"]) == [0]
    pool.release(first)
    pool.release(second)
    assert pool.count_expected([b"x"]) == pool.count_expected([b"ab"]) == 0
    assert pool.check_integrity({}) == []


def test_without_prefix_caching_nothing_is_remembered() -> None:
    pool = BlockPool(2, enable_prefix_caching=False)
    pool.release(fill(pool, b"a", b"ab"))
    assert counts(pool) == (2, 0, 0)
    assert pool.find_prefix([b"a"]) == []


def test_releasing_twice_is_a_defect() -> None:
    pool = BlockPool(2)
    table = pool.allocate(1)
    assert table is not None
    pool.release(table)
    with pytest.raises(AssertionError, match="block 0 is released more often"):
        pool.release(table)


def test_integrity_names_what_is_wrong() -> None:
    pool = BlockPool(3)
    assert pool.allocate(1) == [0]
    assert pool.check_integrity({}) == ["block 0 has 1 references and is held by nobody"]
    assert pool.check_integrity({"a": [0], "b": [0]}) == ["block 0 has 1 references and is held by a, b"]
    pool._free.append(0)
    assert pool.check_integrity({"a": [0]}) == ["block 0 is in 2 of the states free, cached and referenced"]


def chain(salt: bytes, tokens: list[int], block_size: int = 2) -> list[bytes]:
    hashes: list[bytes] = []
    extend_chain(hashes, salt, array("I", tokens), block_size)
    return hashes


def test_hashes_name_a_block_and_all_before_it() -> None:
    assert len(chain(b"", [1, 2, 3])) == 1
    assert chain(b"", [1, 2, 3, 4])[0] == chain(b"", [1, 2, 9, 9])[0]
    assert chain(b"", [1, 2, 3, 4])[1] != chain(b"", [9, 9, 3, 4])[1]
    assert chain(b"", [1, 2])[0] != chain(b"tenant", [1, 2])[0]


def test_hashes_extend_as_tokens_come() -> None:
    tokens = array("I", [1, 2, 3])
    hashes: list[bytes] = []
    extend_chain(hashes, b"s", tokens, 2)
    tokens.extend([4, 5, 6, 7])
    extend_chain(hashes, b"s", tokens, 2)
    assert hashes == chain(b"s", [1, 2, 3, 4, 5, 6, 7])

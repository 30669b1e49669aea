"""Native attention against the reference, with NaN in all slots that nobody may read, and to the bit against itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams, head_elements
from pagoda.kernels.cpu.attention import CpuBackend
from pagoda.kernels.cpu.library import LEVELS, best_level, library
from pagoda.kernels.reference.attention import ReferenceBackend

NUM_BLOCKS = 700
PARAMS = [
    AttentionParams(scale=0.2),
    AttentionParams(scale=0.3, sliding_window=5),
    AttentionParams(scale=0.2, sliding_window=100, soft_cap=2.0),
    AttentionParams(scale=0.2, soft_cap=30.0),
]
# (tokens in the cache after the step, new tokens of the step): beside odd ones, ends on both sides of a vector of 16
# keys, of a tile of 64 and of a split of 512.
MIXED = [(1, 1), (9, 1), (5, 5), (150, 1), (23, 7), (8, 8), (140, 133), (16, 1), (17, 2), (64, 1), (65, 65), (512, 1)]
LONG = [(1300, 1), (1024, 3), (513, 40)]
# Of a model, and of its cache.
DTYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.int8),
    (torch.float32, torch.int8),
]
# Every level below the best one runs on this machine too.
RUNNABLE = list(LEVELS)[list(LEVELS).index(best_level()) :]


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


def backend(level: str | None = None) -> CpuBackend:
    if library(level) is None:
        pytest.skip("no compiler")
    return CpuBackend(level)


def nothing_stored(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A cache in which every number is NaN; in int8 every scale, wherever it lies."""
    return torch.full(shape, -1 if dtype == torch.int8 else math.nan, dtype=dtype)


class Sequences:
    """Random sequences; a backend's cache holds them in blocks at random places, everything else in it is NaN."""

    def __init__(
        self,
        lens: list[int],
        *,
        heads: int = 6,
        kv_heads: int = 2,
        dim: int = 32,
        block_size: int = 16,
        dtype: torch.dtype = torch.bfloat16,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        rng = torch.Generator().manual_seed(sum(lens) + dim)
        order = torch.randperm(NUM_BLOCKS, generator=rng).tolist()
        self.block_size = block_size
        self.tables = [[order.pop() for _ in range(-(-n // block_size))] for n in lens]
        self.cache_dtype = cache_dtype or dtype
        self.cache_shape = (NUM_BLOCKS, block_size, kv_heads, head_elements(dim, self.cache_dtype))

        def random(n: int, num_heads: int) -> Tensor:
            return torch.randn(n, num_heads, dim, generator=rng).to(dtype)

        self.q = [random(n, heads) for n in lens]
        self.k = [random(n, kv_heads) for n in lens]
        self.v = [random(n, kv_heads) for n in lens]

    def batch(self, chunks: list[tuple[int, int, int]]) -> AttentionBatch:
        """Of tokens [start, stop) of sequences; chunks: (sequence, start, stop)."""
        width = max(len(table) for table in self.tables) + 1
        slots = [
            self.tables[i][p // self.block_size] * self.block_size + p % self.block_size
            for i, start, stop in chunks
            for p in range(start, stop)
        ]
        return AttentionBatch(
            cu_seqlens_q=int32([0, *itertools.accumulate(stop - start for _, start, stop in chunks)]),
            seq_lens=int32([stop for _, _, stop in chunks]),
            # What lies past a table's last needed block may not matter: here it is no valid block id.
            block_tables=int32([self._table(i, stop, width) for i, _, stop in chunks]),
            slot_mapping=torch.tensor(slots),
        )

    def run(
        self,
        subject: CpuBackend | ReferenceBackend,
        steps: list[list[tuple[int, int, int]]],
        params: AttentionParams,
    ) -> list[Tensor]:
        """The results of steps that store and attend, one after the other; each is a list of chunks."""
        k_cache, v_cache = (nothing_stored(self.cache_shape, self.cache_dtype) for _ in range(2))
        results = []
        for chunks in steps:
            plan = subject.plan(self.batch(chunks), self.block_size)
            q, k, v = (torch.cat([x[i][start:stop] for i, start, stop in chunks]) for x in (self.q, self.k, self.v))
            plan.store(k, v, k_cache, v_cache)
            results.append(plan.attend(q, k_cache, v_cache, params))
        return results

    def _table(self, sequence: int, stop: int, width: int) -> list[int]:
        used = self.tables[sequence][: -(-stop // self.block_size)]
        return used + [-7] * (width - len(used))


def int32(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def prefill_then(lens: list[tuple[int, int]]) -> list[list[tuple[int, int, int]]]:
    """Two steps: what is in the cache before the step, if anything, and the step."""
    cached = [(i, 0, n - new) for i, (n, new) in enumerate(lens) if n > new]
    step = [(i, n - new, n) for i, (n, new) in enumerate(lens)]
    return [cached, step] if cached else [step]


def require_close(out: Tensor, expected: Tensor, cache_dtype: torch.dtype | None = None) -> None:
    if cache_dtype == torch.int8 and out.dtype == torch.float32:
        # Queries and weights are rounded to 16 bits, weights in each tile.
        torch.testing.assert_close(out, expected, atol=2**-12, rtol=2**-12)
        assert (out - expected).norm() / expected.norm() < 2**-14
        return
    if out.dtype == torch.float32:
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        return
    # Weights and results are rounded to 8 bits; a sum of weighted values may nearly cancel out.
    torch.testing.assert_close(out.float(), expected.float(), atol=2**-6, rtol=2**-6)
    error = (out.double() - expected.double()).norm() / expected.double().norm()
    assert error < 2**-8


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
@pytest.mark.parametrize("params", PARAMS)
def test_every_level_matches_the_reference(
    level: str, dtype: torch.dtype, cache_dtype: torch.dtype, params: AttentionParams
) -> None:
    sequences = Sequences([n for n, _ in MIXED + LONG], dtype=dtype, cache_dtype=cache_dtype)
    steps = prefill_then(MIXED + LONG)
    out = sequences.run(backend(level), steps, params)[-1]
    require_close(out, sequences.run(ReferenceBackend(), steps, params)[-1], cache_dtype)


@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
@pytest.mark.parametrize("block_size", [2, 6, 16, 18, 32, 128])
def test_block_sizes(dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int) -> None:
    lens = MIXED[:10] if block_size == 2 else MIXED
    sequences = Sequences([n for n, _ in lens], block_size=block_size, dtype=dtype, cache_dtype=cache_dtype)
    for params in PARAMS:
        out = sequences.run(backend(), prefill_then(lens), params)[-1]
        require_close(out, sequences.run(ReferenceBackend(), prefill_then(lens), params)[-1], cache_dtype)


@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
@pytest.mark.parametrize("dim", [16, 48, 64, 80, 96, 128, 256])
def test_head_dims(dtype: torch.dtype, cache_dtype: torch.dtype, dim: int) -> None:
    sequences = Sequences([n for n, _ in MIXED], dim=dim, dtype=dtype, cache_dtype=cache_dtype)
    params = AttentionParams(scale=dim**-0.5)
    out = sequences.run(backend(), prefill_then(MIXED), params)[-1]
    require_close(out, sequences.run(ReferenceBackend(), prefill_then(MIXED), params)[-1], cache_dtype)


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (5, 5), (14, 2), (13, 1), (40, 2), (100, 1)])
def test_group_sizes(level: str, heads: int, kv_heads: int) -> None:
    sequences = Sequences([n for n, _ in MIXED], heads=heads, kv_heads=kv_heads)
    params = AttentionParams(scale=0.2, sliding_window=90)
    out = sequences.run(backend(level), prefill_then(MIXED), params)[-1]
    require_close(out, sequences.run(ReferenceBackend(), prefill_then(MIXED), params)[-1])


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
@pytest.mark.parametrize("params", PARAMS)
def test_bits_do_not_depend_on_chunks_neighbours_and_threads(
    level: str, dtype: torch.dtype, cache_dtype: torch.dtype, params: AttentionParams
) -> None:
    length = 700
    sequences = Sequences([length, 300, 1200, 40], heads=7, kv_heads=1, dtype=dtype, cache_dtype=cache_dtype)
    subject = backend(level)
    torch.set_num_threads(1)
    expected = sequences.run(subject, [[(0, 0, length)]], params)[0]
    for size in (1, 7, 64):
        steps = [[(0, start, min(start + size, length))] for start in range(0, length, size)]
        assert torch.equal(torch.cat(sequences.run(subject, steps, params)), expected)
    torch.set_num_threads(2)
    assert torch.equal(sequences.run(subject, [[(0, 0, length)]], params)[0], expected)
    # A decoding token among chunks, and the last token of a long context, of which threads share the keys.
    first = [(1, 0, 300), (2, 0, 1199), (0, 0, length - 1)]
    mixed = sequences.run(subject, [first, [(1, 299, 300), (0, length - 1, length), (3, 0, 40)]], params)[1]
    assert torch.equal(mixed[1], expected[-1])
    alone = sequences.run(subject, [first, [(2, 1199, 1200)]], params)[1]
    torch.set_num_threads(1)
    assert torch.equal(sequences.run(subject, [first, [(2, 1199, 1200)]], params)[1], alone)


def test_threads_share_the_keys_of_one_sequence() -> None:
    # Long enough for two threads to get several splits of 512 keys at once.
    sequences = Sequences([9000], block_size=32, heads=8, kv_heads=1, dim=16, dtype=torch.float32)
    params = AttentionParams(scale=0.25)
    steps = [[(0, 0, 8990)], [(0, 8990, 8999)], [(0, 8999, 9000)]]
    torch.set_num_threads(1)
    expected = sequences.run(backend(), steps, params)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        for out, alone in zip(sequences.run(backend(), steps, params), expected, strict=True):
            assert torch.equal(out, alone)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
def test_large_scores_neither_overflow_nor_vanish(cache_dtype: torch.dtype) -> None:
    sequences = Sequences([200], heads=4, kv_heads=1, cache_dtype=cache_dtype)
    sequences.q[0] *= 60
    params = AttentionParams(scale=1.0)
    out = sequences.run(backend(), [[(0, 0, 200)]], params)[0]
    assert out.isfinite().all()
    require_close(out, sequences.run(ReferenceBackend(), [[(0, 0, 200)]], params)[0])


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
def test_a_nan_in_a_query_stays_in_its_row(level: str, cache_dtype: torch.dtype) -> None:
    sequences = Sequences([40], heads=8, kv_heads=1, cache_dtype=cache_dtype)
    params = AttentionParams(scale=0.2)
    expected = sequences.run(backend(level), [[(0, 0, 40)]], params)[0]
    sequences.q[0][17, 3, 5] = math.nan
    out = sequences.run(backend(level), [[(0, 0, 40)]], params)[0]
    assert out[17, 3].isnan().all()
    out[17, 3] = expected[17, 3]
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
def test_views_of_all_heads_are_read_in_place(dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    sequences = Sequences([90], heads=4, kv_heads=2, dtype=dtype, cache_dtype=cache_dtype)
    params = AttentionParams(scale=0.2)
    plan = backend().plan(sequences.batch([(0, 0, 90)]), sequences.block_size)
    qkv = torch.cat((sequences.q[0], sequences.k[0], sequences.v[0]), dim=1)
    q, k, v = torch.split(qkv, [4, 2, 2], dim=1)
    k_cache, v_cache = (nothing_stored(sequences.cache_shape, cache_dtype) for _ in range(2))
    plan.store(k, v, k_cache, v_cache)
    out = plan.attend(q, k_cache, v_cache, params)
    assert torch.equal(out, sequences.run(backend(), [[(0, 0, 90)]], params)[0])


def test_padding_is_not_stored() -> None:
    k_cache, v_cache = torch.zeros(3, 4, 1, 16), torch.zeros(3, 4, 1, 16)
    batch = AttentionBatch(int32([0, 2]), int32([2]), int32([[1]]), torch.tensor([-1, -1]))
    backend().plan(batch, 4).store(torch.ones(2, 1, 16), torch.ones(2, 1, 16), k_cache, v_cache)
    assert not k_cache.any()
    assert not v_cache.any()


def test_one_plan_serves_layers_with_different_windows() -> None:
    sequences = Sequences([n for n, _ in MIXED])
    chunks = [(i, 0, n) for i, (n, _) in enumerate(MIXED)]
    q, k, v = (torch.cat(x) for x in (sequences.q, sequences.k, sequences.v))
    plan = backend().plan(sequences.batch(chunks), sequences.block_size)
    k_cache, v_cache = (nothing_stored(sequences.cache_shape, torch.bfloat16) for _ in range(2))
    plan.store(k, v, k_cache, v_cache)
    for window in (None, 6, None):
        params = AttentionParams(scale=0.3, sliding_window=window)
        expected = sequences.run(ReferenceBackend(), [chunks], params)[0]
        require_close(plan.attend(q, k_cache, v_cache, params), expected)


@pytest.mark.parametrize(
    ("dtype", "dim", "block_size"),
    [(torch.float16, 64, 16), (torch.bfloat16, 24, 16), (torch.bfloat16, 272, 16), (torch.float32, 64, 3)],
)
def test_what_is_not_supported_is_refused(dtype: torch.dtype, dim: int, block_size: int) -> None:
    assert not CpuBackend.supports(dtype=dtype, head_dim=dim, block_size=block_size)
    cache = torch.zeros(4, block_size, 1, dim, dtype=dtype)
    batch = AttentionBatch(int32([0, 1]), int32([1]), int32([[0]]), torch.tensor([0]))
    plan = backend().plan(batch, block_size)
    x = torch.zeros(1, 1, dim, dtype=dtype)
    with pytest.raises(ValueError, match="native attention is for"):
        plan.store(x, x, cache, cache)
    with pytest.raises(ValueError, match="native attention is for"):
        plan.attend(x, cache, cache, AttentionParams(scale=1.0))


def test_scales_of_a_float8_cache_are_refused() -> None:
    sequences = Sequences([4])
    with pytest.raises(ValueError, match="no scales"):
        sequences.run(backend(), [[(0, 0, 4)]], AttentionParams(scale=1.0, k_scale=0.5))

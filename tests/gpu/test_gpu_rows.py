"""Norms, rotation, cache writes, activations, sampling and penalties on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from triton_cases import plausible_tokens, random_parameters, sampling_tensors

from pagoda.kernels.attention import AttentionBatch, AttentionParams
from pagoda.kernels.elementwise import HeadNorm, Rope
from pagoda.kernels.reference.elementwise import ReferenceElementwise
from pagoda.kernels.sampling import SamplingTensors
from pagoda.kernels.triton.backend import TritonBackend
from pagoda.kernels.triton.elementwise import TritonElementwise
from pagoda.kernels.triton.penalties import PenaltyTensors, apply_penalties
from pagoda.kernels.triton.sampling import sample

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BLOCK_SIZE = 16


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").to(dtype)


def assert_close(out: Tensor, expected: Tensor, units: float) -> None:
    """Within so many units of the dtype's last place."""
    assert out.dtype == expected.dtype
    epsilon = max(torch.finfo(out.dtype).eps, 1e-6)
    torch.testing.assert_close(out.float(), expected.float(), rtol=units * epsilon, atol=units * epsilon)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [896, 4096, 16384])
@pytest.mark.parametrize("float_weight", [False, True])
def test_norms(dtype: torch.dtype, dim: int, float_weight: bool) -> None:
    x, delta = randn(300, dim, dtype=dtype), randn(300, dim, dtype=dtype, seed=1)
    weight = randn(dim, dtype=torch.float32 if float_weight else dtype, seed=2)
    ours, reference = TritonElementwise(), ReferenceElementwise()
    assert_close(ours.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), 2)
    summed, expected_sum = x.clone(), x.clone()
    out = ours.add_rms_norm(summed, delta, weight, 1e-5)
    assert_close(out, reference.add_rms_norm(expected_sum, delta, weight, 1e-5), 2)
    assert torch.equal(summed, expected_sum)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_activations(dtype: torch.dtype, activation: str) -> None:
    gate_up = randn(200, 2 * 14336, dtype=dtype) * 3
    ours, reference = TritonElementwise(), ReferenceElementwise()
    expected = reference.activate_and_multiply(gate_up, activation)  # type: ignore[arg-type]
    assert_close(ours.activate_and_multiply(gate_up, activation), expected, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn], ids=["same", "float8"])
@pytest.mark.parametrize("norm_dtype", [None, "model's", torch.float32], ids=str)
@pytest.mark.parametrize(("dim", "half"), [(64, 32), (128, 64), (256, 128), (96, 24)])
def test_rotation_and_store(
    dtype: torch.dtype, cache_dtype: torch.dtype | None, norm_dtype: torch.dtype | str | None, dim: int, half: int
) -> None:
    heads, kv_heads, count = 32, 8, 333
    qkv = randn(count, heads + 2 * kv_heads, dim, dtype=dtype)
    angles = randn(count, half, seed=1) * 3
    rope = Rope(angles.cos(), angles.sin())
    norm = None
    if norm_dtype is not None:
        weight_dtype = norm_dtype if isinstance(norm_dtype, torch.dtype) else dtype
        norm = HeadNorm(randn(dim, dtype=weight_dtype, seed=2), randn(dim, dtype=weight_dtype, seed=3), 1e-6)
    expected = qkv.clone()
    ReferenceElementwise().norm_and_rotate(expected, kv_heads, rope, norm)

    slots = torch.randperm(40 * BLOCK_SIZE, generator=torch.Generator().manual_seed(0))[:count]
    slots[::7] = -1
    batch = AttentionBatch(
        cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32, device="cuda"),
        seq_lens=torch.tensor([count], dtype=torch.int32, device="cuda"),
        block_tables=torch.zeros((1, 1), dtype=torch.int32, device="cuda"),
        slot_mapping=slots.cuda(),
    )
    params = AttentionParams(1.0, k_scale=0.03, v_scale=0.01) if cache_dtype else AttentionParams(1.0)
    caches = torch.zeros((2, 40, BLOCK_SIZE, kv_heads, dim), dtype=torch.float32, device="cuda").to(
        cache_dtype or dtype
    )
    plan = TritonBackend().plan(batch, BLOCK_SIZE)
    weights = {"q_norm": norm.q_weight, "k_norm": norm.k_weight, "eps": norm.eps} if norm else {}
    fused = qkv.clone()
    queries = plan.rope_and_store(fused, *rope, *caches, params, **weights)
    # A norm's sum in another order can move a rounding, and the rotation adds two such numbers.
    assert_close(queries, expected[:, :heads], 16)

    separate, others = qkv.clone(), torch.zeros_like(caches)
    TritonElementwise().norm_and_rotate(separate, kv_heads, rope, norm)
    assert_close(separate, expected, 16)
    keys, values = separate[:, heads : heads + kv_heads], separate[:, heads + kv_heads :]
    plan.store(keys, values, *others, params.k_scale, params.v_scale)
    assert torch.equal(others.view(torch.uint8), caches.view(torch.uint8))

    # By a tensor: torch multiplies by the reciprocal of a number.
    stored = slots.cuda() >= 0
    for cache, new, scale in zip(others, (keys, values), (params.k_scale, params.v_scale), strict=True):
        truth = torch.zeros((40 * BLOCK_SIZE, kv_heads, dim), device="cuda")
        rounded = (
            (new.float() / torch.tensor(scale, device="cuda")).clamp(-448, 448).to(cache.dtype) if cache_dtype else new
        )
        truth[slots.cuda()[stored]] = rounded.float()[stored]
        assert torch.equal(cache.flatten(0, 1).float(), truth)


@pytest.mark.parametrize("vocab_size", [1000, 32000, 151936, 262144])
@pytest.mark.parametrize("spread", ["flat", "normal", "peaked"])
def test_sampling(vocab_size: int, spread: str) -> None:
    """Against sorting in float64; a model's logits are peaked, and random ones fill the list of candidates."""
    count = 48
    rng = np.random.default_rng(vocab_size)
    scale = {"flat": 0.01, "normal": 1.0, "peaked": 4.0}[spread]
    logits = (rng.normal(size=(count, vocab_size)) * scale).astype(np.float32)
    logits[:, ::5] = -np.inf
    parameters = random_parameters(count, vocab_size)
    on_device = torch.from_numpy(logits).cuda()
    rows = sampling_tensors(parameters, "cuda")
    tokens = sample(on_device, rows).tolist()
    # The GPU's exponentials are good to about 1e-6.
    plausible = [plausible_tokens(logits[row], parameters, row, 4e-6) for row in range(count)]
    wrong = [row for row in range(count) if plausible[row] is not None and tokens[row] not in (plausible[row] or ())]
    assert wrong == []
    assert sum(tokens_of_row is not None for tokens_of_row in plausible) > count // 3
    # Nothing but the row counts: neither its neighbours nor how the work is cut.
    alone = [sample(on_device[row : row + 1], _select(rows, row)).item() for row in range(0, count, 7)]
    assert alone == tokens[::7]
    assert sample(on_device, rows, chunk=1024, few=256).tolist() == tokens


def test_penalties_and_biases() -> None:
    count, vocab_size = 64, 151936
    generator = torch.Generator("cuda").manual_seed(0)
    logits = randn(count, vocab_size) * 3
    output_counts = torch.randint(-6, 4, (count, vocab_size), generator=generator, device="cuda").clamp(min=0).int()
    in_prompt = torch.rand((count, vocab_size), generator=generator, device="cuda") < 0.1
    bias_tokens = torch.randperm(vocab_size, generator=generator, device="cuda")[: 20 * count].view(count, 20).int()
    bias_tokens[:, ::3] = -1
    rows = PenaltyTensors(
        repetition=torch.linspace(0.7, 1.5, count, device="cuda"),
        presence=torch.linspace(-1.0, 1.0, count, device="cuda"),
        frequency=torch.linspace(0.5, -0.5, count, device="cuda"),
        output_counts=output_counts,
        in_prompt=in_prompt,
        row_ids=torch.randperm(count, generator=generator, device="cuda").int(),
        bias_tokens=bias_tokens,
        bias_values=randn(count, 20, seed=1),
    )
    expected = logits.double()
    biases = torch.where(bias_tokens >= 0, rows.bias_values, 0.0).double()
    expected.scatter_add_(1, bias_tokens.clamp(min=0).long(), biases)
    counts, prompt = output_counts[rows.row_ids.long()], in_prompt[rows.row_ids.long()]
    repetition = rows.repetition[:, None].double()
    seen = (counts > 0) | prompt
    expected = torch.where(seen, torch.where(expected > 0, expected / repetition, expected * repetition), expected)
    expected -= rows.frequency[:, None] * counts + rows.presence[:, None] * (counts > 0)
    apply_penalties(logits, rows)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def _select(rows: SamplingTensors, row: int) -> SamplingTensors:
    return SamplingTensors(**{name: tensor[row : row + 1] for name, tensor in vars(rows).items()})

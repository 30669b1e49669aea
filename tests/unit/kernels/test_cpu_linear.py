"""Native linear layers against float64, and the promise that a row's bits depend on that row only."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pagoda.kernels.cpu.elementwise import CpuElementwise
from pagoda.kernels.cpu.library import LEVELS, best_level, library
from pagoda.kernels.cpu.linear import CpuLinear, Storage
from pagoda.kernels.elementwise import Activation

pytestmark = pytest.mark.usefixtures("two_threads")

STORAGES: list[Storage] = ["float32", "bfloat16", "int8", "int4"]
# Every level below the best one runs on this machine too.
RUNNABLE = list(LEVELS)[list(LEVELS).index(best_level()) :]


def packed(weight: Tensor, bias: Tensor | None = None, *, level: str | None = None, **options: object) -> CpuLinear:
    kernels = library(level)
    if kernels is None:
        pytest.skip("no compiler")
    return CpuLinear(kernels, weight, bias, **options)  # type: ignore[arg-type]


def random_case(rows: int, out_features: int, in_features: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias: normally distributed."""
    generator = torch.Generator().manual_seed(rows + out_features + in_features)
    weight = torch.randn(out_features, in_features, generator=generator) / math.sqrt(in_features)
    x = torch.randn(rows, in_features, generator=generator)
    return x.to(dtype), weight.to(dtype), torch.randn(out_features, generator=generator).to(dtype)


def dtype_of(storage: Storage) -> torch.dtype:
    return torch.float32 if storage == "float32" else torch.bfloat16


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize(("storage", "bound"), [("float32", 3e-6), ("bfloat16", 3e-6), ("int8", 0.02), ("int4", 0.09)])
@pytest.mark.parametrize(
    ("rows", "out_features", "in_features"),
    [(1, 64, 64), (5, 33, 96), (13, 7, 33), (3, 100, 70), (32, 1152, 896), (2, 31, 1), (4, 32, 4864)],
)
def test_matches_float64(
    level: str, storage: Storage, bound: float, rows: int, out_features: int, in_features: int
) -> None:
    x, weight, bias = random_case(rows, out_features, in_features, dtype_of(storage))
    out = packed(weight, bias, level=level, storage=storage, out_dtype=torch.float32)(x)
    product = x.double() @ weight.double().T
    assert relative_error(out - bias.double(), product) < bound


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("storage", STORAGES)
def test_a_row_has_the_same_bits_in_every_batch(level: str, storage: Storage) -> None:
    # More rows than are packed at a time; more inputs than pass through L1 at a time.
    x, weight, bias = random_case(1024, 96, 2050, dtype_of(storage))
    layer = packed(weight, bias, level=level, storage=storage, out_dtype=torch.float32)
    out = layer(x)
    for first, rows in [(0, 1), (1023, 1), *((7 * rows, rows) for rows in range(2, 34)), (5, 256), (3, 965)]:
        assert torch.equal(layer(x[first : first + rows]), out[first : first + rows]), rows


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "out_features", "has_bias"), [(1, 7, True), (13, 16, False), (32, 100, True)])
def test_an_activation_gives_the_bits_of_two_steps(
    level: str, storage: Storage, activation: Activation, rows: int, out_features: int, has_bias: bool
) -> None:
    x, weight, bias = random_case(rows, 2 * out_features, 70, dtype_of(storage))
    kept_bias = bias if has_bias else None
    out = packed(weight, kept_bias, level=level, storage=storage, activation=activation)(x)
    gate_up = packed(weight, kept_bias, level=level, storage=storage)(x)
    kernels = library(level)
    assert kernels
    assert out.shape == (rows, out_features)
    assert torch.equal(out, CpuElementwise(kernels).activate_and_multiply(gate_up, activation))
    wide = packed(weight, kept_bias, level=level, storage=storage, activation=activation, out_dtype=torch.float32)(x)
    torch.testing.assert_close(out.float(), wide, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("storage", STORAGES)
def test_activated_rows_have_the_same_bits_in_every_batch(storage: Storage) -> None:
    x, weight, bias = random_case(300, 192, 130, dtype_of(storage))
    layer = packed(weight, bias, storage=storage, activation="silu")
    out = layer(x)
    for first, rows in [(0, 1), (299, 1), (7, 2), (50, 32), (3, 290)]:
        assert torch.equal(layer(x[first : first + rows]), out[first : first + rows]), rows


@pytest.mark.parametrize("storage", STORAGES)
def test_threads_change_nothing(storage: Storage) -> None:
    # How many rows are packed at a time depends on the number of threads.
    x, weight, bias = random_case(600, 1000, 896, dtype_of(storage))
    outs = []
    for num_threads in (1, 2, 3, 7):
        torch.set_num_threads(num_threads)
        layer = packed(weight, bias, storage=storage, out_dtype=torch.float32)
        outs.append((layer(x), layer(x[:1])))
    for out, first in outs:
        assert torch.equal(out, outs[0][0])
        assert torch.equal(first, outs[0][0][:1])


@pytest.mark.parametrize("storage", STORAGES)
def test_rounds_once_after_the_bias(storage: Storage) -> None:
    x, weight, bias = random_case(9, 40, 64, dtype_of(storage))
    wide = packed(weight, bias, storage=storage, out_dtype=torch.float32)(x)
    narrow = packed(weight, bias, storage=storage, out_dtype=torch.bfloat16)(x)
    assert torch.equal(narrow, wide.bfloat16())
    without = packed(weight, storage=storage, out_dtype=torch.float32)(x)
    torch.testing.assert_close(wide, without + bias.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_strides_shapes_and_dtypes(storage: Storage) -> None:
    x, weight, bias = random_case(12, 40, 65, dtype_of(storage))
    layer = packed(weight, bias, storage=storage)
    out = layer(x)
    assert out.dtype == x.dtype
    wide = torch.full((12, 99), math.nan, dtype=x.dtype)
    wide[:, 3:68] = x
    assert torch.equal(layer(wide[:, 3:68]), out)
    assert torch.equal(layer(x.T.contiguous().T), out)
    assert torch.equal(layer(x.view(3, 4, 65)), out.view(3, 4, 40))
    assert torch.equal(layer(x[0]), out[0])
    assert layer(x[:0]).shape == (0, 40)


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_quantized_layers_take_float32(storage: Storage) -> None:
    x, weight, bias = random_case(6, 48, 128, torch.bfloat16)
    layer = packed(weight.float(), bias.float(), storage=storage)
    assert torch.equal(layer(x.float()), packed(weight, bias, storage=storage, out_dtype=torch.float32)(x))
    assert layer(x.float()).dtype == torch.float32


def test_int8_is_exact_on_what_8_bits_can_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (5, 4000), generator=generator).float()
    weight = torch.randint(-127, 128, (40, 4000), generator=generator).float()
    x[:, 0] = weight[:, 0] = 127  # the scales are 1
    out = packed(weight, storage="int8")(x)
    assert torch.equal(out, (x.double() @ weight.double().T).float())


def test_int8_does_not_overflow_at_its_extremes() -> None:
    x = torch.full((1, 66_311), 127.0)
    weight = torch.cat([torch.full((1, 66_311), 127.0), torch.full((1, 66_311), -127.0)])
    out = packed(weight, storage="int8")(x)
    expected = float(66_311 * 127 * 127)
    assert torch.equal(out, torch.tensor([[expected, -expected]]))
    with pytest.raises(ValueError, match="66312"):
        packed(torch.zeros(1, 66_312), storage="int8")


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_rows_and_groups_have_scales_of_their_own(storage: Storage) -> None:
    x, weight, _ = random_case(4, 32, 64, torch.float32)
    factors = torch.tensor([1e-4, 1.0, 1e4, 1e8])[:, None]
    layer = packed(weight, storage=storage)
    torch.testing.assert_close(layer(x * factors) / factors, layer(x), rtol=0.02, atol=0.02)
    if storage == "int4":
        # Groups of 32 inputs that are far larger than others drown nothing.
        scaled = torch.cat([x[:, :32] * 1e4, x[:, 32:]], dim=1)
        weight = torch.cat([torch.zeros(32, 32), weight[:, 32:]], dim=1)
        expected = x.double()[:, 32:] @ weight.double()[:, 32:].T
        assert relative_error(packed(weight, storage=storage)(scaled), expected) < 0.09


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_zeros_and_what_is_not_finite(storage: Storage) -> None:
    x, weight, bias = random_case(4, 32, 64, torch.float32)
    x[0] = 0
    x[1, 3] = math.nan
    x[2, 5] = math.inf
    weight[7] = 0
    out = packed(weight, bias, storage=storage)(x)
    assert torch.equal(out[0], bias)
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()
    assert out[3].isfinite().all()
    assert out[3, 7] == bias[7]


def test_sizes() -> None:
    weight = torch.zeros(1024, 1024)
    sizes = {storage: packed(weight, storage=storage).num_bytes * 8 / weight.numel() for storage in STORAGES}
    assert sizes["float32"] == pytest.approx(32, rel=0.01)
    assert sizes["bfloat16"] == pytest.approx(16, rel=0.01)
    assert sizes["int8"] == pytest.approx(8, rel=0.01)
    assert sizes["int4"] == pytest.approx(4.5, rel=0.01)


def test_int4_loses_less_than_evenly_spaced_values() -> None:
    """Heavy-tailed weights, as trained ones are; the rival is the best of many scales per group of 32, from -8 to 7."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 1024, generator=generator)
    weight = normal / torch.randn(64, 1024, 4, generator=generator).square().mean(-1).sqrt()
    identity = torch.eye(1024)
    restored = packed(weight, storage="int4")(identity).T
    groups = weight.view(-1, 32)
    most = groups.abs().max(1, keepdim=True)
    candidates = [groups.gather(1, most.indices) / -levels for levels in torch.linspace(6, 10, 17)]
    errors = [((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum(1) for scale in candidates]
    evenly_spaced = torch.stack(errors).min(0).values.sum()
    assert (restored - weight).square().sum() < 0.8 * evenly_spaced


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        packed(torch.zeros(4, 4, dtype=torch.float16))

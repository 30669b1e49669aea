"""Native sampling draws what torch draws, on every instruction level that this processor has."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.batch import SamplingRows
from pagoda.executor.sampler import sample_with_torch
from pagoda.kernels.cpu.library import LEVELS, best_level, library
from pagoda.kernels.cpu.sampling import CpuSampler

sys.path.insert(0, str(Path(__file__).parent))
from triton_cases import plausible_tokens, random_parameters, sampling_tensors

pytestmark = pytest.mark.usefixtures("two_threads")

Parameters = dict[str, NDArray[np.generic]]

OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
FILTERS = [{}, {"top_p": 0.9}, {"top_k": 7}, {"min_p": 0.05}, {"top_k": 90, "top_p": 0.7, "min_p": 0.001}]


@pytest.fixture(scope="module", params=list(LEVELS)[list(LEVELS).index(best_level()) :])
def native(request: pytest.FixtureRequest) -> CpuSampler:
    loaded = library(request.param)
    assert loaded, "a C++ compiler is needed"
    return CpuSampler(loaded)


def draw(native: CpuSampler, logits: Tensor, parameters: Parameters) -> list[int]:
    tokens = native(logits, sampling_tensors(parameters))
    assert tokens.dtype == torch.int64
    return tokens.tolist()


def expected(logits: Tensor, parameters: Parameters) -> list[int]:
    return sample_with_torch(logits, SamplingRows(**parameters)).tolist()  # type: ignore[arg-type]


def same_rows(count: int, **values: float) -> Parameters:
    """Rows that differ in their seeds only."""
    rng = np.random.default_rng(count)
    rows = {name: np.full(count, values.get(name, default), np.float32) for name, default in OFF.items()}
    return {
        **rows,
        "top_k": rows["top_k"].astype(np.int64),
        "seed": rng.integers(0, 2**64, count, dtype=np.uint64),
        "position": np.full(count, int(values.get("position", 0))),
    }


def select(parameters: Parameters, which: slice | NDArray[np.int64]) -> Parameters:
    return {name: np.ascontiguousarray(values[which]) for name, values in parameters.items()}


def random_logits(count: int, vocab_size: int, seed: int) -> Tensor:
    """Rows from flat to peaked."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, vocab_size)) * rng.choice([0.01, 0.3, 2, 5], (count, 1))).float()


@pytest.mark.parametrize(
    ("count", "vocab_size"),
    [(1, 1), (40, 5), (40, 16), (300, 257), (40, 1000), (100, 4099), (24, 32_000), (1, 32_001), (12, 151_937)],
)
def test_tokens_are_those_of_torch(native: CpuSampler, count: int, vocab_size: int) -> None:
    """For these seeds no bound and no random number falls within rounding of a step."""
    logits = random_logits(count, vocab_size, vocab_size)
    parameters = random_parameters(count, vocab_size)
    assert draw(native, logits, parameters) == expected(logits, parameters)


@pytest.mark.parametrize("top_k", [1, 2, 49, 600, 31_999, 32_000, 2**31 + 1, 2**32 - 1])
def test_every_size_of_top_k(native: CpuSampler, top_k: int) -> None:
    logits = random_logits(6, 32_000, top_k)
    parameters = {**same_rows(6), "top_k": np.full(6, top_k)}
    assert draw(native, logits, parameters) == expected(logits, parameters)


@st.composite
def rows_of_logits(draw_from: st.DrawFn) -> Tensor:
    """All kinds of rows: ties, forbidden tokens, huge and tiny differences, one token far above the others."""
    count, vocab_size = draw_from(st.integers(1, 20)), draw_from(st.integers(1, 1500))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    logits = rng.normal(size=(count, vocab_size)) * draw_from(st.sampled_from([0.0, 1e-6, 0.1, 1.0, 4.0, 1e4, 1e37]))
    if step := draw_from(st.sampled_from([0.0, 0.5, 3.0])):
        logits = np.round(logits / step) * step
    if draw_from(st.booleans()):
        logits[:, rng.integers(vocab_size)] = logits.max() + draw_from(st.sampled_from([1.0, 15.0, 60.0]))
    if draw_from(st.booleans()):
        logits[rng.random(logits.shape) < draw_from(st.sampled_from([0.1, 0.99]))] = -math.inf
        logits[np.arange(count), rng.integers(vocab_size, size=count)] = 1.0
    return torch.from_numpy(logits).float()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logits=rows_of_logits(), seed=st.integers(0, 2**32))
def test_tokens_are_plausible(native: CpuSampler, logits: Tensor, seed: int) -> None:
    """Against the plain definition, by sorting in float64; and against torch, wherever that is sure of the token."""
    parameters = random_parameters(len(logits), seed)
    tokens, reference = draw(native, logits, parameters), expected(logits, parameters)
    for row, token in enumerate(tokens):
        plausible = plausible_tokens(logits[row].numpy(), parameters, row, 1e-6)
        if plausible is None:
            assert logits[row, token] > -math.inf
        else:
            assert token in plausible
            assert token == reference[row] or len(plausible) > 1


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_equally_likely_tokens_are_kept_or_dropped_together(native: CpuSampler, filters: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.integers(-3, 4, 900).astype(np.float32))
    tokens = draw(native, logits.expand(60_000, -1), same_rows(60_000, **filters))
    drawn = np.bincount(tokens, minlength=900) > 0
    assert all(len(set(drawn[logits.numpy() == value])) == 1 for value in range(4))


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_frequencies_are_those_of_softmax(native: CpuSampler, filters: dict[str, float], scale: float) -> None:
    count, vocab_size = 60_000, 700
    logits = random_logits(1, vocab_size, 7)[0]
    logits *= scale / logits.std()
    probabilities = np.exp(logits.double().numpy() / 0.8)
    probabilities /= probabilities.max()
    order = np.argsort(-probabilities)
    probabilities[probabilities < filters.get("min_p", 0.0)] = 0.0
    if "top_k" in filters:
        probabilities[order[int(filters["top_k"]) :]] = 0.0
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= filters.get("top_p", 1.0) * probabilities.sum()]] = 0.0
    cells = probabilities / probabilities.sum() * count
    tokens = draw(native, logits.expand(count, -1), same_rows(count, temperature=0.8, **filters))
    counts = np.bincount(tokens, minlength=vocab_size)
    assert not counts[cells == 0].any()
    # Cells of few expected draws are merged, as the chi-square approximation wants.
    rare = cells < 10
    cells, counts = np.append(cells[~rare], cells[rare].sum()), np.append(counts[~rare], counts[rare].sum())
    cells, counts = cells[cells > 0], counts[cells > 0]
    freedom = len(cells) - 1
    # Four standard deviations of a chi-square variable.
    assert ((counts - cells) ** 2 / cells).sum() < freedom + 4 * math.sqrt(2 * freedom)


def test_a_row_depends_on_nothing_else(native: CpuSampler) -> None:
    count = 300
    logits, parameters = random_logits(count, 3001, 1), random_parameters(count, 1)
    together = draw(native, logits, parameters)
    torch.set_num_threads(1)
    assert draw(native, logits, parameters) == together
    torch.set_num_threads(2)
    order = np.random.default_rng(0).permutation(count)
    shuffled = draw(native, logits[torch.from_numpy(order)], select(parameters, order))
    assert shuffled == [together[i] for i in order]
    for i in range(0, count, 7):
        assert draw(native, logits[i : i + 1], select(parameters, slice(i, i + 1))) == together[i : i + 1]


def test_strided_logits(native: CpuSampler) -> None:
    logits, parameters = random_logits(8, 700, 2), random_parameters(8, 2)
    wide = torch.full((8, 1000), math.nan)
    wide[:, 100:800] = logits
    assert draw(native, wide[:, 100:800], parameters) == draw(native, logits, parameters)
    assert draw(native, logits.T.contiguous().T, parameters) == draw(native, logits, parameters)


def test_no_rows(native: CpuSampler) -> None:
    assert draw(native, torch.empty(0, 50), same_rows(0)) == []


@pytest.mark.parametrize("filters", [*FILTERS, {"temperature": 0.0}], ids=str)
def test_rows_that_are_no_distribution_are_as_in_torch(native: CpuSampler, filters: dict[str, float]) -> None:
    logits = random_logits(7, 600, 3)
    logits[0, [400, 50]] = math.nan
    logits[1] = math.nan
    logits[2] = -math.inf
    logits[3, [300, 500]] = math.inf
    logits[4, 20], logits[4, 10] = math.inf, math.nan
    logits[5, 599] = math.nan
    logits[6] = -logits[0]
    parameters = same_rows(7, **filters)
    assert draw(native, logits, parameters) == expected(logits, parameters)


@pytest.mark.parametrize("vocab_size", [1, 15, 700, 5000])
def test_the_first_of_equal_maxima_is_greedy(native: CpuSampler, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = torch.from_numpy(rng.integers(-2, 3, (50, vocab_size)).astype(np.float32))
    logits[logits == 0] *= torch.from_numpy(rng.choice([-1.0, 1.0], (50, vocab_size))).float()[logits == 0]
    assert draw(native, logits, same_rows(50, temperature=0.0)) == logits.argmax(dim=-1).tolist()
    logits.clamp_(max=0)
    assert draw(native, logits, same_rows(50, temperature=0.0)) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(
    "values", [{"top_p": 1e-6}, {"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}, {"min_p": 7.0}, {"temperature": 1e-42}]
)
def test_extreme_parameters_leave_the_most_likely_token(native: CpuSampler, values: dict[str, float]) -> None:
    logits = random_logits(20, 500, 4) * 1e4
    assert draw(native, logits, same_rows(20, **values)) == logits.argmax(dim=-1).tolist()

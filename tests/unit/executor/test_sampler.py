"""Sampling: filters against a plain reference, statistics, and draws that depend on their own row only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda.executor import sampler
from pagoda.executor.batch import SamplingRows
from pagoda.executor.philox import philox, uniform
from pagoda.executor.sampler import sample


@pytest.fixture(autouse=True, params=["native", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(sampler, "_native", lambda: None)
    else:
        assert sampler._native(), "a C++ compiler is needed"


def make_rows(count: int, **values: Any) -> SamplingRows:
    """Rows with defaults (temperature 1, no filter, seed i, position 0); each value is one for all or a list."""
    defaults = {
        "temperature": (1.0, np.float32),
        "top_p": (1.0, np.float32),
        "top_k": (0, np.int64),
        "min_p": (0.0, np.float32),
        "seed": (np.arange(count), np.uint64),
        "position": (0, np.int64),
    }
    return SamplingRows(
        **{
            name: np.broadcast_to(np.asarray(values.get(name, default)), count).astype(dtype)
            for name, (default, dtype) in defaults.items()
        }
    )


def draw(logits: Tensor, count: int, **values: Any) -> np.ndarray:
    """`count` draws from one row of logits, each with its own seed."""
    return sample(logits.expand(count, -1), make_rows(count, **values))


def reference_probabilities(logits: Tensor, temperature: float, top_p: float, top_k: int, min_p: float) -> np.ndarray:
    """vLLM's order: temperature, min-p, top-k, top-p; for logits without ties."""
    x = logits.double().numpy() / temperature
    probabilities = np.exp(x - x.max())
    probabilities /= probabilities.sum()
    keep = probabilities >= min_p * probabilities.max()
    order = np.argsort(-probabilities)
    if top_k > 0:
        keep[order[top_k:]] = False
    probabilities = np.where(keep, probabilities, 0)
    probabilities /= probabilities.sum()
    before = 0.0
    for token in order:
        if before >= top_p:
            probabilities[token] = 0
        before += probabilities[token]
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("vocab_size", [5, 256, 1000])
@pytest.mark.parametrize("seed", range(25))
def test_filters_keep_what_the_reference_keeps(seed: int, vocab_size: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=vocab_size) * rng.choice([0.3, 2, 5])).float()
    parameters = {
        "temperature": float(rng.choice([0.5, 1.0, 1.5])),
        "top_p": float(rng.choice([0.05, 0.5, 0.9, 0.999, 1.0])),
        "top_k": int(rng.choice([0, 1, 3, 200, 2000])),
        "min_p": float(rng.choice([0.0, 0.02, 0.3])),
    }
    expected = reference_probabilities(logits, **parameters)
    # float32 parameters may move the end of a nucleus by one token when it falls on a boundary; these seeds do not.
    drawn = np.bincount(draw(logits, 4000, **parameters), minlength=vocab_size)
    assert not drawn[expected == 0].any()
    # Every kept token that is likely to be drawn was drawn.
    assert drawn[expected > 0.005].all()


@pytest.mark.parametrize(
    "parameters",
    [{}, {"temperature": 0.6}, {"temperature": 2.0, "top_k": 20}, {"top_p": 0.8}, {"min_p": 0.1, "top_p": 0.95}],
)
def test_frequencies_follow_the_distribution(parameters: dict[str, float]) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3)) * 2
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    expected = reference_probabilities(logits, **{**defaults, **parameters})  # type: ignore[arg-type]
    count = 40_000
    observed = np.bincount(draw(logits, count, **parameters), minlength=300)
    # Cells of few expected draws are merged, as the chi-square approximation wants.
    rare = expected * count < 10
    cells = np.append(expected[~rare], expected[rare].sum()) * count
    counts = np.append(observed[~rare], observed[rare].sum())
    cells, counts = cells[cells > 0], counts[cells > 0]
    statistic = ((counts - cells) ** 2 / cells).sum()
    freedom = len(cells) - 1
    # Four standard deviations of a chi-square variable.
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_positions_and_seeds_give_independent_draws() -> None:
    logits = torch.zeros(16)
    count = 20_000
    pairs = draw(logits, count, seed=7, position=np.arange(count)) * 16 + draw(
        logits, count, seed=7, position=np.arange(1, count + 1)
    )
    observed = np.bincount(pairs, minlength=256)
    statistic = ((observed - count / 256) ** 2 / (count / 256)).sum()
    assert abs(statistic - 255) < 4 * math.sqrt(2 * 255)


def test_a_draw_depends_on_its_own_row_only() -> None:
    rng = np.random.default_rng(0)
    count = 64
    logits = torch.from_numpy(rng.normal(size=(count, 700)) * 3).float()
    rows = make_rows(
        count,
        temperature=rng.choice([0.0, 0.7, 1.0, 3.0], count),
        top_p=rng.choice([0.3, 0.95, 1.0], count),
        top_k=rng.choice([0, 5, 300], count),
        min_p=rng.choice([0.0, 0.1], count),
        position=rng.integers(0, 5000, count),
    )
    together = sample(logits, rows)
    for i in range(count):
        mask = np.arange(count) == i
        assert sample(logits[mask], rows.select(mask))[0] == together[i]
    order = rng.permutation(count)
    shuffled = SamplingRows(*(getattr(rows, name)[order] for name in rows.__dataclass_fields__))
    assert (sample(logits[order], shuffled) == together[order]).all()


def test_greedy_takes_the_maximum() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 1.0]])
    assert sample(logits, make_rows(2, temperature=0.0, top_p=0.1, top_k=1)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "parameters", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}, {"min_p": 7.0}, {"temperature": 1e-30}]
)
def test_extreme_parameters_leave_the_most_likely_token(parameters: dict[str, float]) -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 1e4
    assert set(draw(logits, 50, **parameters)) == {int(logits.argmax())}


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((1000,), float("-inf"))
    logits[[3, 255, 256, 999]] = 0.0
    assert set(draw(logits, 500)) == {3, 255, 256, 999}
    assert set(draw(logits, 500, top_k=2000, top_p=0.999999, min_p=1e-6)) == {3, 255, 256, 999}
    only = torch.full((1000,), float("-inf"))
    only[777] = -50.0
    assert set(draw(only, 20, temperature=2.0, top_p=0.5)) == {777}


def test_a_nucleus_of_most_of_the_vocabulary() -> None:
    logits = torch.linspace(0, 1e-3, 5000)
    drawn = draw(logits, 3000, top_p=0.5)
    # Larger logits lie behind: about half of the vocabulary, from the end.
    assert drawn.min() >= 2490
    assert drawn.max() > 4900


def test_philox_known_answers() -> None:
    """Of the authors' Random123 (kat_vectors)."""

    def run(counter: list[int], key: list[int]) -> list[str]:
        words = philox(
            tuple(np.array([w], np.uint64) for w in counter),  # type: ignore[arg-type]
            tuple(np.array([w], np.uint64) for w in key),  # type: ignore[arg-type]
        )
        return [f"{int(word[0]):08x}" for word in words]

    ones = 0xFFFFFFFF
    assert run([0] * 4, [0] * 2) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert run([ones] * 4, [ones] * 2) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    assert run([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]) == [
        "d16cfe09",
        "94fdcceb",
        "5001e420",
        "24126ea1",
    ]


def test_uniform_uses_all_bits_of_seed_and_position() -> None:
    seeds = np.array([1, 1 << 32, 1 << 63, 0, 0, 0], np.uint64)
    positions = np.array([0, 0, 0, 1, 1 << 32, 0], np.uint64)
    values = uniform(seeds, positions)
    assert len(set(values)) == 6
    assert ((values >= 0) & (values < 1)).all()

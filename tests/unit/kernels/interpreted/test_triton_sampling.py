"""Sampling on the device draws the tokens of the executor's sampler; penalties against their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from triton_cases import plausible_tokens, random_parameters, sampling_tensors

from pagoda.executor import sampler
from pagoda.executor.batch import SamplingRows
from pagoda.kernels.triton.penalties import PenaltyTensors, apply_penalties
from pagoda.kernels.triton.sampling import sample


def random_logits(count: int, vocab_size: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, vocab_size)) * rng.choice([0.3, 2, 5], (count, 1))).float()


@pytest.mark.parametrize(
    ("vocab_size", "chunk", "few", "count"),
    [(5, 256, 64, 16), (1000, 256, 256, 20), (3000, 512, 512, 20), (3000, 1024, 16, 12)],
    ids=["tiny", "one chunk", "candidates in registers", "many candidates"],
)
def test_tokens_are_those_of_the_executors_sampler(vocab_size: int, chunk: int, few: int, count: int) -> None:
    """For these seeds no bound and no random number falls within rounding of a step (see `sampling`)."""
    logits = random_logits(count, vocab_size, vocab_size + few)
    parameters = random_parameters(count, vocab_size + few)
    expected = sampler.sample(logits, SamplingRows(**parameters))  # type: ignore[arg-type]
    tokens = sample(logits, sampling_tensors(parameters), chunk=chunk, few=few)
    assert tokens.tolist() == expected.tolist()
    # The plain definition, which the tests on a GPU use, agrees.
    for row in range(count):
        plausible = plausible_tokens(logits[row].numpy(), parameters, row, 1e-6)
        assert plausible is None or tokens[row].item() in plausible


def same_rows(count: int, **values: Any) -> dict[str, np.ndarray]:
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "position": 0}
    rows = {name: np.full(count, values.get(name, default)) for name, default in defaults.items()}
    return {**rows, "seed": np.arange(count, dtype=np.uint64)}


@pytest.mark.parametrize(
    "values",
    [
        {"top_p": 1e-6},
        {"top_p": 0.0},
        {"top_k": 1},
        {"min_p": 1.0},
        {"min_p": 7.0},
        {"temperature": 1e-30},
        {"temperature": 0.0, "top_k": 3},
    ],
)
def test_extreme_parameters_leave_the_most_likely_token(values: dict[str, float]) -> None:
    logits = random_logits(1, 500, 1) * 1e4
    tokens = sample(logits.expand(4, -1).contiguous(), sampling_tensors(same_rows(4, **values)), chunk=256)
    assert set(tokens.tolist()) == {int(logits.argmax())}


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((16, 1000), float("-inf"))
    logits[:, [3, 255, 256, 999]] = 0.0
    for values in ({}, {"top_k": 2000, "top_p": 0.999999, "min_p": 1e-6}):
        tokens = sample(logits, sampling_tensors(same_rows(16, **values)), chunk=256)
        assert set(tokens.tolist()) == {3, 255, 256, 999}


def test_equally_likely_tokens_are_kept_together() -> None:
    logits = torch.zeros(24, 300)
    logits[:, 100:] = -20.0
    tokens = sample(logits, sampling_tensors(same_rows(24, top_k=5)), chunk=256)
    assert len(set(tokens.tolist())) > 5
    assert max(tokens.tolist()) < 100


def test_the_first_of_equal_maxima_is_greedy() -> None:
    logits = torch.zeros(1, 700)
    logits[:, [300, 310, 600]] = 2.0
    assert sample(logits, sampling_tensors(same_rows(1, temperature=0.0)), chunk=256).tolist() == [300]


def test_penalties_and_biases() -> None:
    rng = np.random.default_rng(0)
    count, vocab_size = 4, 1500
    logits = random_logits(count, vocab_size, 0)
    logits[0, 7] = float("-inf")
    counts = torch.from_numpy(rng.poisson(0.3, (6, vocab_size))).int()
    in_prompt = torch.from_numpy(rng.random((6, vocab_size)) < 0.2)
    rows = PenaltyTensors(
        repetition=torch.tensor([1.0, 1.3, 0.8, 1.0]),
        presence=torch.tensor([0.0, 0.5, 0.0, -0.25]),
        frequency=torch.tensor([0.0, 0.0, 0.7, 0.1]),
        output_counts=counts,
        in_prompt=in_prompt,
        row_ids=torch.tensor([5, 0, 3, 2], dtype=torch.int32),
        bias_tokens=torch.tensor([[3, 1400, -1], [-1, -1, -1], [0, 1499, 1024], [9, -1, -1]], dtype=torch.int32),
        bias_values=torch.tensor([[2.0, -100.0, 9.0], [1.0, 1.0, 1.0], [0.5, 1.5, -2.5], [5.0, 0.0, 0.0]]),
    )
    expected = logits.clone()
    for i, row in enumerate(rows.row_ids.tolist()):
        for token, bias in zip(rows.bias_tokens[i].tolist(), rows.bias_values[i].tolist(), strict=True):
            if token >= 0:
                expected[i, token] += bias
        x = expected[i]
        seen = (counts[row] > 0) | in_prompt[row]
        x = torch.where(seen, torch.where(x > 0, x / rows.repetition[i], x * rows.repetition[i]), x)
        expected[i] = x - rows.frequency[i] * counts[row] - rows.presence[i] * (counts[row] > 0)
    apply_penalties(logits, rows)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["greedy", "unfiltered", "filtered"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_of_nan_gets_some_token_and_harms_no_other(kind: str) -> None:
    """The next step looks the token up: it must be there."""
    count, vocab_size = 5, 700
    parameters = random_parameters(count, 3)
    parameters["temperature"][:] = 0.0 if kind == "greedy" else 1.0
    parameters["top_k"][:] = 300 if kind == "filtered" else 0
    parameters["top_p"][:] = 0.9 if kind == "filtered" else 1.0
    parameters["min_p"][:] = 0.0
    logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(0))
    expected = sample(logits, sampling_tensors(parameters), chunk=256, few=256)
    logits[1] = torch.nan
    logits[3, ::2] = torch.nan
    tokens = sample(logits, sampling_tensors(parameters), chunk=256, few=256)
    assert ((tokens >= 0) & (tokens < vocab_size)).all()
    assert tokens[::2].tolist() == expected[::2].tolist()

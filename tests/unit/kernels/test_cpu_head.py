"""A shortlist of tokens draws what all logits would draw, whatever the weights are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagoda.kernels.cpu import head as module
from pagoda.kernels.cpu.head import CpuHead
from pagoda.kernels.cpu.library import LEVELS, best_level, library
from pagoda.kernels.cpu.sampling import CpuSampler
from pagoda.kernels.sampling import SamplingTensors

pytestmark = pytest.mark.usefixtures("two_threads")

RUNNABLE = list(LEVELS)[list(LEVELS).index(best_level()) :]
# temperature, top_p, top_k, min_p
GREEDY = (0.0, 1.0, 0, 0.0)
FEW = [GREEDY, (1.0, 1.0, 1, 0.0), (0.7, 0.8, 20, 0.0), (1.0, 1.0, 0, 0.2), (2.0, 0.9, 7, 0.05), (1e-3, 1.0, 3, 0.0)]
ALL = (1.0, 0.9, 0, 0.0)


def make_head(weight: Tensor, level: str | None = None) -> CpuHead:
    loaded = library(level)
    assert loaded, "a C++ compiler is needed"
    return CpuHead(loaded, weight)


def draw(logits: Tensor, rows: SamplingTensors, level: str | None = None) -> list[int]:
    loaded = library(level)
    assert loaded
    return CpuSampler(loaded)(logits, rows).tolist()


def sampling(parameters: list[tuple[float, float, int, float]], seed: int = 0) -> SamplingTensors:
    temperature, top_p, top_k, min_p = zip(*parameters, strict=True)
    return SamplingTensors(
        torch.tensor(temperature),
        torch.tensor(top_p),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(min_p),
        torch.arange(seed, seed + len(parameters)),
        torch.arange(len(parameters)),
    )


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_from(head: CpuHead, x: Tensor, rows: SamplingTensors, level: str | None = None) -> list[int]:
    """As the executor does."""
    if (shortlist := head.shortlist(x, rows)) is None:
        return draw(head(x), rows, level)
    indices = torch.tensor(draw(shortlist.logits, rows, level))
    return shortlist.token_ids.gather(1, indices[:, None])[:, 0].tolist()


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [32768, 32775])  # whole panels, and 7 tokens in the last one
def test_a_few_logits_are_enough(level: str, dtype: torch.dtype, tokens: int) -> None:
    head = make_head(normal(0, tokens, 96).to(dtype), level)
    x = normal(1, len(FEW), 96).to(dtype)
    rows, exact = sampling(FEW), head(x)
    shortlist = head.shortlist(x, rows)
    assert shortlist
    logits, token_ids = shortlist
    listed = ~logits.isneginf()
    assert torch.equal(logits[listed], exact.gather(1, token_ids)[listed])
    assert len(FEW) <= listed.sum() < tokens
    assert (token_ids.diff() > 0)[listed[:, 1:]].all()
    assert draw_from(head, x, rows, level) == draw(exact, rows, level)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 1 << 20),
    parameters=st.lists(st.sampled_from(FEW), min_size=1, max_size=9),
    is_bf16=st.booleans(),
    in_features=st.integers(1, 200),
    tokens=st.integers(600, 6000),
    outlier=st.sampled_from([1.0, 30.0]),
    spread=st.sampled_from([1.0, 0.01, 0.0]),
)
def test_the_same_token_is_drawn(
    seed: int,
    parameters: list[tuple[float, float, int, float]],
    is_bf16: bool,
    in_features: int,
    tokens: int,
    outlier: float,
    spread: float,
) -> None:
    # A spread of 0.01 makes all tokens nearly equal, and 0 groups of them quite.
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    weight = normal(seed, 1, in_features) + spread * normal(seed + 1, tokens, in_features)
    weight += normal(seed + 2, 40, in_features).repeat(-(-tokens // 40), 1)[:tokens]
    x = normal(seed + 3, len(parameters), in_features)
    x[:, 0] *= outlier
    head, rows = make_head(weight.to(dtype)), sampling(parameters, seed)
    assert draw_from(head, x.to(dtype), rows) == draw(head(x.to(dtype)), rows)


def test_without_its_errors_it_would_draw_others() -> None:
    head, x, rows = make_head(normal(0, 32768, 64)), normal(1, 200, 64), sampling([GREEDY])
    exact = [draw(head(row[None]), rows) for row in x]
    assert [draw_from(head, row[None], rows) for row in x] == exact
    head._errors.zero_()
    head._panel_errors.zero_()
    assert [draw_from(head, row[None], rows) for row in x] != exact


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["weight", "x"])
def test_what_is_no_number_is_found(value: float, where: str) -> None:
    weight, x = normal(0, 4096, 64), normal(1, 2, 64)
    (weight if where == "weight" else x)[1, 5] = value
    head, rows = make_head(weight), sampling([GREEDY, (0.7, 1.0, 5, 0.0)])
    assert draw_from(head, x, rows) == draw(head(x), rows)


def test_there_is_no_list_for_rows_that_may_draw_any_token() -> None:
    head, x = make_head(normal(0, 32768, 64)), normal(1, 2, 64)
    assert head.shortlist(x, sampling([GREEDY, GREEDY]))
    assert head.shortlist(x, sampling([GREEDY, ALL])) is None


@pytest.mark.parametrize("rows_at_a_time", [5, 100])
def test_a_token_does_not_depend_on_the_other_rows(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 4 * 65536 * rows_at_a_time)
    head = make_head(normal(0, 65536, 128).bfloat16())
    x, parameters = normal(1, 24, 128).bfloat16(), [FEW[i % len(FEW)] for i in range(24)]
    rows = sampling(parameters)
    assert head.shortlist(x, rows)
    together = draw_from(head, x, rows)
    for i in range(24):
        alone = SamplingTensors(*(getattr(rows, name)[i : i + 1] for name in rows.__dataclass_fields__))
        assert draw_from(head, x[i : i + 1], alone) == [together[i]]


def test_where_lists_are_long_it_is_tried_less_often() -> None:
    head, x = make_head(normal(0, 8192, 64)), normal(1, 1, 64)
    flat, rows = torch.zeros(1, 64), sampling([GREEDY])  # all tokens of `flat` are equal
    assert head.shortlist(x, rows)
    assert head.shortlist(flat, rows) is None
    assert head.shortlist(x, rows)
    for pause in (0, 1, 3, 7):
        assert head.shortlist(flat, rows) is None
        assert not any(head.shortlist(x, rows) for _ in range(pause))
    assert head.shortlist(flat, rows) is None

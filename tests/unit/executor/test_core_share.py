"""How many threads a step gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pagoda.executor.core_share import CoreShare

US = 1000
MS = 1000 * US


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_all_cores_before_anything_is_known() -> None:
    assert CoreShare(2).num_threads(64, 64) == 2


@pytest.mark.parametrize(
    ("cpu_ns", "num_rows", "expected"),
    [
        (13 * MS, 64, 1),  # 15 M parameters: computing costs what serving does
        (1 * MS, 1, 2),  # the same model, one row: reading the weights is what costs
        (100 * MS, 64, 2),  # 0.5 B parameters
    ],
)
def test_a_thread_less_where_serving_has_much_to_do(cpu_ns: int, num_rows: int, expected: int) -> None:
    share = CoreShare(2)
    share.took(num_rows, cpu_ns)
    assert share.num_threads(num_rows, num_rows) == expected


def test_prompts_get_all_cores() -> None:
    share = CoreShare(2)
    share.took(64, 13 * MS)
    assert share.num_threads(256, 0) == 2
    assert share.num_threads(2048, 1) == 2


def test_cores_are_divided_in_proportion_and_one_always_stays() -> None:
    share = CoreShare(16)
    share.took(64, 64 * 110 * US)
    assert share.num_threads(64, 64) == 8
    share = CoreShare(16)
    share.took(64, 64 * US)
    assert share.num_threads(64, 64) == 1


def test_what_a_token_costs_follows_the_steps() -> None:
    share = CoreShare(2)
    share.took(1, 2 * MS)
    assert share.num_threads(64, 64) == 2
    for _ in range(10):
        share.took(64, 64 * 100 * US)
    assert share.num_threads(64, 64) == 1


def test_a_step_runs_with_its_threads_and_is_measured() -> None:
    share = CoreShare(2)
    share.took(64, 64 * US)
    with share.step(64, 64):
        assert torch.get_num_threads() == 1
    before = share.num_threads(1, 1)
    for _ in range(10):
        with share.step(1, 1):
            torch.ones(1 << 22).exp_().sum()
    assert (before, share.num_threads(1, 1)) == (1, 2)

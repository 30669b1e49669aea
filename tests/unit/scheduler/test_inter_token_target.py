"""What requests wait for beside long prompts, on an executor as slow as two CPU cores, by a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from pagoda.scheduler.core.request import RequestKey

TARGET_S = 0.250
INTRUDER = 99


def step_s(num_decoding: int, num_tokens: int, num_pairs: int) -> float:
    """Measured with a model of 0.5 B parameters. num_pairs: of prompt tokens and what they attend to"""
    return max(0.025 + 3e-4 * num_decoding, 0.006 + 9e-4 * (num_decoding + num_tokens) + 1.3e-7 * num_pairs)


class Clocked:
    """One executor; each step takes the time it would take there."""

    def __init__(self, make_cell: Callable[..., Any], target_s: float) -> None:
        self.cell = make_cell(inter_token_target_s=target_s)
        self.cell.join(
            block_size=16,
            num_blocks=1024,
            max_model_len=8192,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            eos_token_ids=frozenset(),
        )
        self.slowness = 1.0
        self.token_times: dict[int, list[float]] = {}
        self.work: list[tuple[int, int]] = []
        """(rows that decode, prompt tokens) of each step."""

    def submit(self, number: int, num_prompt_tokens: int, max_tokens: int) -> None:
        # No two begin alike.
        token_ids = [(number * 31 + position * position) % 1000 for position in range(num_prompt_tokens)]
        self.cell.submit(number, token_ids, max_tokens=max_tokens)
        self.token_times[number] = []

    def step(self) -> bool:
        """False: there was nothing to do."""
        cell = self.cell
        plan = cell.plan().get("A")
        if plan is None:
            return False
        work, chunks = cell.work[plan.step], dict(zip(plan.chunk_rows, plan.chunk_num_tokens, strict=True))
        contexts = cell.core.lanes["A"].rows.num_computed
        num_pairs = sum(count * int(contexts[row]) - count * count // 2 for row, count in chunks.items())
        self.work.append((len(work) - len(chunks), sum(chunks.values())))
        seconds = self.slowness * step_s(*self.work[-1], num_pairs)
        cell.now += seconds
        before = {number: self.num_tokens(number) for number in self.token_times}
        _, result = cell.in_flight["A"][0]
        cell.in_flight["A"][0] = plan, result._replace(forward_ns=int(seconds * 1e9))
        cell.answer()
        for number, times in self.token_times.items():
            times += [cell.now] * (self.num_tokens(number) - before[number])
        return True

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        while not until() and self.step():
            pass

    def num_tokens(self, number: int) -> int:
        return len(self.cell.tokens[RequestKey("t", number)])

    def longest_gap_s(self, *numbers: int) -> float:
        return max(after - before for number in numbers for before, after in pairwise(self.token_times[number]))


@pytest.fixture
def clocked(make_cell: Callable[..., Any]) -> Callable[..., Clocked]:
    return lambda target_s=TARGET_S: Clocked(make_cell, target_s)


def with_intruder(clocked: Clocked, length: int) -> list[int]:
    """Eight requests run when a long prompt comes. Returns the eight."""
    running = list(range(8))
    for number in running:
        clocked.submit(number, 128, 150)
    clocked.run(lambda: all(clocked.num_tokens(number) >= 32 for number in running))
    clocked.submit(INTRUDER, length, 2)
    clocked.run()
    return running


def test_a_long_prompt_holds_up_running_requests_for_about_the_target_at_most(clocked: Callable[..., Clocked]) -> None:
    limited, unlimited = clocked(), clocked(0.0)
    running = with_intruder(limited, 4096)
    assert with_intruder(unlimited, 4096) == running
    assert limited.longest_gap_s(*running) <= 1.1 * TARGET_S
    assert unlimited.longest_gap_s(*running) > 1.5
    # It costs next to nothing.
    assert limited.token_times[INTRUDER][0] <= 1.1 * unlimited.token_times[INTRUDER][0]
    assert limited.cell.now <= 1.05 * unlimited.cell.now


def test_a_prompt_beside_rows_that_had_none_to_compute_starts_small(clocked: Callable[..., Clocked]) -> None:
    """One-token prompts are decode steps: nothing is known about prompts when the long one comes."""
    cell = clocked()
    for number in range(8):
        cell.submit(number, 1, 100)
    cell.run(lambda: cell.num_tokens(0) == 50)
    cell.submit(INTRUDER, 4096, 2)
    cell.run()
    assert [num_tokens for _, num_tokens in cell.work if num_tokens][:3] == [64, 128, 256]
    assert cell.longest_gap_s(*range(8)) <= 1.1 * TARGET_S


def test_a_machine_that_becomes_slow_in_the_middle_of_a_prompt(clocked: Callable[..., Clocked]) -> None:
    cell = clocked()
    cell.submit(0, 128, 300)
    cell.submit(INTRUDER, 8000, 2)
    cell.run(lambda: len(cell.work) == 12)
    cell.slowness = 1.6
    now = cell.cell.now
    cell.run()
    times = [time for time in cell.token_times[0] if time >= now]
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps[:3]) <= 1.1 * 1.6 * TARGET_S
    assert max(gaps[3:]) <= 1.1 * TARGET_S


def test_prompts_that_come_together_when_nobody_runs_do_not_wait_for_the_last(clocked: Callable[..., Clocked]) -> None:
    limited, unlimited = clocked(), clocked(0.0)
    for cell in (limited, unlimited):
        # Chunk sizes are known by then.
        cell.submit(100, 2048, 2)
        cell.run()
        began = cell.cell.now
        for number in range(8):
            cell.submit(number, 200, 20)
        cell.run()
        cell.token_times = {number: [time - began for time in cell.token_times[number]] for number in range(8)}
    first = [[cell.token_times[number][0] for number in range(8)] for cell in (limited, unlimited)]
    assert len(set(first[1])) == 1
    assert sum(first[0]) < 0.7 * sum(first[1])
    assert max(first[0]) < 1.1 * max(first[1])


def test_many_prompts_at_once_lose_no_throughput(clocked: Callable[..., Clocked]) -> None:
    limited, unlimited = clocked(), clocked(0.0)
    for cell in (limited, unlimited):
        for number in range(32):
            cell.submit(number, 256, 64)
        cell.run()
    assert limited.cell.now - 100 <= 1.06 * (unlimited.cell.now - 100)
    assert limited.longest_gap_s(*range(32)) <= 1.1 * TARGET_S

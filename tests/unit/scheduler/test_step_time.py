"""Chunk sizes from step times: what is learned, how fast, and what does not disturb."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.scheduler.core.step_time import StepTimes

MOST, LEAST = 2048, 16


def linear(num_decoding: int, num_tokens: int) -> float:
    return 0.008 + 2e-5 * num_decoding + 4e-5 * num_tokens


def with_a_floor(num_decoding: int, num_tokens: int) -> float:
    """Reading the weights hides the first few hundred tokens."""
    return max(0.015, 4e-5 * (num_decoding + num_tokens))


def quadratic(num_decoding: int, num_tokens: int) -> float:
    return 0.008 + 2e-5 * num_decoding + 1e-5 * num_tokens + 2e-8 * num_tokens**2


class Machine:
    """Steps with noise; one in a hundred is several times slower."""

    def __init__(self, seconds: Callable[[int, int], float], *, noise: float = 0.05, seed: int = 1) -> None:
        self.seconds = seconds
        self.noise = noise
        self.rng = random.Random(seed)

    def run(self, num_decoding: int, num_tokens: int) -> tuple[float, bool]:
        """(how long the step took, whether it was one of the slow ones)."""
        seconds = self.seconds(num_decoding, num_tokens) * (1 + self.rng.gauss(0, self.noise))
        if self.noise and self.rng.random() < 0.01:
            return seconds * self.rng.uniform(3, 20), True
        return seconds, False


def serve(
    machine: Machine, times: StepTimes, target_s: float, num_steps: int, wanted: Callable[[int], int]
) -> Iterator[tuple[int, float]]:
    """Steps within the budgets: (prompt tokens, seconds) of those that wanted MOST and were not slow ones.

    wanted: how many prompt tokens there are to compute in step i.
    """
    num_decoding = 32
    for step in range(num_steps):
        num_decoding = max(1, min(256, num_decoding + machine.rng.randint(-3, 3)))
        budget = times.chunk_budget(target_s, MOST, LEAST)
        assert LEAST <= budget <= MOST
        num_tokens = min(wanted(step), budget)
        seconds, is_slow = machine.run(num_decoding, num_tokens)
        times.observe(num_tokens, seconds)
        if wanted(step) == MOST and not is_slow:
            yield num_tokens, seconds


def always(step: int) -> int:
    return MOST


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


@pytest.mark.parametrize("seconds", [linear, with_a_floor, quadratic])
@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(always, id="always"),
        pytest.param(lambda step: MOST if step // 200 % 5 == 4 else 0, id="bursts"),
        pytest.param(lambda step: (0, 0, 64, 300, MOST)[step * 7919 % 5], id="mixed"),
    ],
)
def test_steps_meet_the_target(seconds: Callable[[int, int], float], wanted: Callable[[int], int]) -> None:
    target_s = 0.050
    steps = list(serve(Machine(seconds), StepTimes(), target_s, 3000, wanted))
    times = [time for _, time in steps[20:]]
    assert percentile(times, 50) <= target_s
    assert percentile(times, 95) <= 1.1 * target_s
    # And prompts are not held back for it.
    assert percentile(times, 50) >= 0.85 * target_s


@pytest.mark.parametrize("seconds", [linear, with_a_floor, quadratic])
def test_not_even_the_first_steps_miss_the_target(seconds: Callable[[int, int], float]) -> None:
    machine = Machine(seconds, noise=0)
    assert max(time for _, time in serve(machine, StepTimes(), 0.050, 50, always)) <= 0.050


def test_the_first_prompts_get_the_least_and_then_at_most_twice_as_much_as_the_last() -> None:
    times, budgets = StepTimes(), []
    for _ in range(9):
        budgets.append(times.chunk_budget(10.0, MOST, LEAST))
        # Decode steps tell nothing about prompts.
        times.observe(0, linear(32, 0))
        assert times.chunk_budget(10.0, MOST, LEAST) == budgets[-1]
        times.observe(budgets[-1], linear(32, budgets[-1]))
    assert budgets == [16, 32, 64, 128, 256, 512, 1024, 2048, 2048]


def test_a_first_step_that_is_very_slow_holds_prompts_back_for_a_few_steps_only() -> None:
    times = StepTimes()
    times.observe(64, 3.0)
    steps = list(serve(Machine(linear, noise=0), times, 0.050, 20, always))
    assert steps[0][0] == LEAST
    assert steps[10][1] >= 0.7 * 0.050
    assert 0.9 * 0.050 < steps[-1][1] <= 0.050


def test_one_step_that_is_slow_does_not_count() -> None:
    times = StepTimes()
    list(serve(Machine(linear, noise=0), times, 0.050, 100, always))
    before = times.chunk_budget(0.050, MOST, LEAST)
    times.observe(before, 5.0)
    times.observe(0, 5.0)
    assert times.chunk_budget(0.050, MOST, LEAST) == pytest.approx(before, rel=0.02)


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.6, 3.0])
def test_a_change_of_speed_is_followed_within_three_steps(factor: float) -> None:
    times, target_s = StepTimes(), 0.060
    list(serve(Machine(linear, noise=0), times, target_s, 100, always))
    changed = Machine(lambda num_decoding, num_tokens: factor * linear(num_decoding, num_tokens), noise=0)
    steps = list(serve(changed, times, target_s, 30, always))
    if factor > 1:
        assert steps[2][1] > 1.3 * target_s
        # What decoding takes is known from before; with no step that only decodes, the rest comes a little later.
        assert all(time < 1.25 * target_s for _, time in steps[3:])
        assert 0.9 * target_s < steps[-1][1] <= target_s
    else:
        assert steps[2][1] < 0.8 * target_s
        assert all(num_tokens == MOST or time > 0.9 * target_s for num_tokens, time in steps[8:])


def test_the_chunks_of_one_long_prompt_cost_more_and_more() -> None:
    """As attention makes them: the last tokens take three times as long as the first."""
    times, target_s = StepTimes(), 0.100
    list(serve(Machine(linear, noise=0), times, target_s, 20, lambda step: MOST if step % 4 else 0))
    length = 131_072
    context, taken = 0, []
    while context < length:
        num_tokens = min(length - context, times.chunk_budget(target_s, MOST, LEAST))
        seconds = linear(32, 0) + 4e-5 * num_tokens * (1 + 2 * context / length)
        times.observe(num_tokens, seconds)
        context += num_tokens
        taken.append(seconds)
    assert max(taken) <= 1.1 * target_s
    assert percentile(taken, 50) >= 0.9 * target_s


def test_a_long_prompt_is_cut_as_the_last_one_was_however_long_ago_that_is() -> None:
    times = StepTimes()
    list(serve(Machine(linear, noise=0), times, 0.050, 100, always))
    before = times.chunk_budget(0.050, MOST, LEAST)
    for step in range(10_000):
        num_tokens = step % 3 * 20
        times.chunk_budget(0.050, MOST, LEAST)
        # Per token, these cost ten times as much.
        times.observe(num_tokens, linear(32, 10 * num_tokens))
    assert times.chunk_budget(0.050, MOST, LEAST) == pytest.approx(before, rel=0.01)


def test_short_prompts_count_when_they_miss_the_target() -> None:
    """Full budgets would never be used, and it would never be seen that the machine has become slow."""
    times = StepTimes()
    list(serve(Machine(linear, noise=0), times, 0.050, 100, always))
    assert times.chunk_budget(0.050, MOST, LEAST) > 900
    slow = Machine(lambda num_decoding, num_tokens: 5 * linear(num_decoding, num_tokens), noise=0)
    for step in range(20):
        num_tokens = min(400, times.chunk_budget(0.050, MOST, LEAST))
        seconds, _ = slow.run(32, num_tokens)
        times.observe(num_tokens, seconds)
        times.observe(0, 5 * linear(32, 0))
        assert step < 5 or seconds <= 1.1 * 0.050


def test_a_target_that_cannot_be_met_leaves_the_least() -> None:
    times = StepTimes()
    assert times.chunk_budget(0.005, 5, 5) == 5
    for _ in range(100):
        times.observe(0, linear(32, 0))
        times.observe(times.chunk_budget(0.005, MOST, LEAST), linear(32, LEAST))
        assert times.chunk_budget(0.005, MOST, LEAST) == LEAST
    assert times.chunk_budget(0.005, 5, 5) == 5


def test_prompts_that_cost_nothing_get_all_there_is() -> None:
    times = StepTimes()
    for _ in range(20):
        times.observe(0, 0.010)
        times.observe(times.chunk_budget(0.020, MOST, LEAST), 0.010)
    assert times.chunk_budget(0.020, MOST, LEAST) == MOST


def test_where_nobody_measures_there_is_no_limit() -> None:
    times = StepTimes()
    for _ in range(20):
        times.observe(0, 0.0)
        times.observe(times.chunk_budget(0.020, MOST, LEAST), 0.0)
    assert times.chunk_budget(0.020, MOST, LEAST) == MOST


STEPS = st.tuples(st.integers(0, 1 << 20), st.one_of(st.just(0.0), st.floats(1e-9, 1e4)))


@given(st.lists(STEPS, max_size=30), st.floats(1e-6, 1e3), st.integers(1, 1 << 20))
def test_whatever_it_sees_budgets_make_sense(steps: list[tuple[int, float]], target_s: float, most: int) -> None:
    times = StepTimes()
    for num_tokens, seconds in steps:
        times.observe(num_tokens, seconds)
    least = min(LEAST, most)
    budget = times.chunk_budget(target_s, most, least)
    assert isinstance(budget, int)
    assert least <= budget <= most
    assert budget <= times.chunk_budget(2 * target_s, most, least)
    largest = max((num_tokens for num_tokens, _ in steps), default=0)
    assert budget <= max(least, 2 * largest)

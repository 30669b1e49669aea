"""The model of step times: what it learns, what it forgets, and the budgets that follow."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.scheduler.core.step_time import StepTimeModel

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
        if self.rng.random() < 0.01:
            return seconds * self.rng.uniform(3, 20), True
        return seconds, False


def serve(
    machine: Machine, model: StepTimeModel, target_s: float, num_steps: int, wanted: Callable[[int], int]
) -> Iterator[tuple[int, float]]:
    """Steps within the model's budgets: (prompt tokens, seconds) of those that wanted MOST and were not slow ones.

    wanted: how many prompt tokens there are to compute in step i.
    """
    num_decoding = 32
    for step in range(num_steps):
        num_decoding = max(1, min(256, num_decoding + machine.rng.randint(-3, 3)))
        budget = model.chunk_budget(target_s, num_decoding, MOST, LEAST)
        assert LEAST <= budget <= MOST
        num_tokens = min(wanted(step), budget)
        seconds, is_slow = machine.run(num_decoding, num_tokens)
        model.observe(num_decoding, num_tokens, seconds)
        if wanted(step) == MOST and not is_slow:
            yield num_tokens, seconds


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


def test_it_learns_the_coefficients_through_noise_and_outliers() -> None:
    machine, model = Machine(linear), StepTimeModel()
    for _ in range(2000):
        num_decoding, num_tokens = machine.rng.randint(0, 256), machine.rng.choice([0, 0, 64, 512, 2048])
        model.observe(num_decoding, num_tokens, machine.run(num_decoding, num_tokens)[0])
    for num_decoding in (0, 64, 256):
        for num_tokens in (0, 256, 1024, 4096):
            expected = linear(num_decoding, num_tokens)
            assert model.predict(num_decoding, num_tokens) == pytest.approx(expected, rel=0.1, abs=0.003)


def test_without_noise_it_is_exact() -> None:
    rng, model = random.Random(2), StepTimeModel()
    for _ in range(600):
        num_decoding, num_tokens = rng.randint(0, 256), rng.choice([0, 512, 2048])
        model.observe(num_decoding, num_tokens, linear(num_decoding, num_tokens))
    assert model.predict(100, 1000) == pytest.approx(linear(100, 1000), rel=1e-3)
    budget = model.chunk_budget(0.040, 100, MOST, LEAST)
    assert linear(100, budget) == pytest.approx(0.040, rel=0.01)


@pytest.mark.parametrize("seconds", [linear, with_a_floor, quadratic])
@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(lambda step: MOST, id="always"),
        pytest.param(lambda step: MOST if step // 200 % 5 == 4 else 0, id="bursts"),
        pytest.param(lambda step: (0, 0, 64, 300, MOST)[step * 7919 % 5], id="mixed"),
    ],
)
def test_steps_meet_the_target(seconds: Callable[[int, int], float], wanted: Callable[[int], int]) -> None:
    target_s = 0.050
    steps = list(serve(Machine(seconds), StepTimeModel(), target_s, 3000, wanted))
    times = [time for _, time in steps[20:]]
    assert percentile(times, 50) <= target_s
    assert percentile(times, 95) <= 1.1 * target_s
    # And prompts are not held back for it.
    assert percentile(times, 50) >= 0.85 * target_s


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_it_follows_a_machine_that_changes(factor: float) -> None:
    model, target_s = StepTimeModel(), 0.060
    before = list(serve(Machine(linear), model, target_s, 1000, lambda step: MOST))
    changed = Machine(lambda num_decoding, num_tokens: factor * linear(num_decoding, num_tokens), seed=2)
    after = list(serve(changed, model, target_s, 1000, lambda step: MOST))
    late = [time for _, time in after[200:]]
    assert percentile(late, 95) <= 1.1 * target_s
    if factor > 1:
        assert percentile(late, 50) >= 0.85 * target_s
        assert after[-1][0] < before[-1][0] / 2
    else:
        assert after[-1][0] == MOST


def test_a_slow_step_does_not_disturb_what_was_learned() -> None:
    machine, model = Machine(linear), StepTimeModel()
    list(serve(machine, model, 0.050, 500, lambda step: MOST))
    before = model.chunk_budget(0.050, 32, MOST, LEAST)
    model.observe(32, before, 5.0)
    assert model.chunk_budget(0.050, 32, MOST, LEAST) == pytest.approx(before, rel=0.1)


def test_a_slow_first_step_is_forgotten() -> None:
    model = StepTimeModel()
    model.observe(1, 512, 3.0)
    steps = list(serve(Machine(linear), model, 0.050, 600, lambda step: MOST))
    assert percentile([time for _, time in steps[400:]], 50) == pytest.approx(0.048, rel=0.1)


def test_before_it_has_seen_prompts_they_get_all_there_is() -> None:
    model = StepTimeModel()
    assert model.predict(10, 100) == 0
    assert model.chunk_budget(0.001, 10, MOST, LEAST) == MOST
    for _ in range(1000):
        model.observe(32, 0, 0.010)
    assert model.chunk_budget(0.001, 32, MOST, LEAST) == MOST
    assert model.predict(32, 0) == pytest.approx(0.010)


def test_it_knows_prompts_after_a_long_time_without_any() -> None:
    model, rng = StepTimeModel(), random.Random(3)
    for _ in range(200):
        num_tokens = rng.choice([0, 512, 1024])
        model.observe(32, num_tokens, linear(32, num_tokens))
    for _ in range(20_000):
        model.observe(32, 0, linear(32, 0))
    assert model.predict(32, 512) == pytest.approx(linear(32, 512), rel=0.05)


def test_the_same_step_over_and_over_is_predicted_and_says_little_else() -> None:
    model = StepTimeModel()
    for _ in range(5000):
        model.observe(7, 300, 0.020)
    assert model.predict(7, 300) == pytest.approx(0.020, rel=1e-3)
    assert 0 <= model.predict(0, 0) <= model.predict(0, 300) <= 0.020
    assert LEAST <= model.chunk_budget(0.010, 7, MOST, LEAST) < 300 < model.chunk_budget(0.030, 7, MOST, LEAST)


@pytest.mark.parametrize("num_tokens", [1 << 12, 1 << 20, 1 << 30])
@pytest.mark.parametrize("shapes", [1, 2, 3])
def test_huge_steps_that_are_all_alike_do_not_upset_the_arithmetic(num_tokens: int, shapes: int) -> None:
    model = StepTimeModel()
    for step in range(1000):
        model.observe(65_536 - step % shapes, num_tokens - step % shapes**2, 1.0)
    assert model.predict(65_536, num_tokens) == pytest.approx(1.0, rel=1e-3)


def test_a_machine_without_noise_may_change_too() -> None:
    model = StepTimeModel()
    for factor in (1, 3, 1):
        for step in range(300):
            num_tokens = step % 3 * 500
            model.observe(32, num_tokens, factor * linear(32, num_tokens))
        assert model.predict(32, 700) == pytest.approx(factor * linear(32, 700), rel=0.05)


def test_a_target_that_cannot_be_met_leaves_the_least() -> None:
    model = StepTimeModel()
    list(serve(Machine(linear), model, 0.005, 300, lambda step: MOST))
    assert model.chunk_budget(0.005, 32, MOST, LEAST) == LEAST
    assert model.chunk_budget(0.005, 32, 5, 5) == 5


def test_prompts_that_cost_nothing_get_all_there_is() -> None:
    model = StepTimeModel()
    for step in range(200):
        model.observe(32, step % 3 * 100, 0.010)
    assert model.chunk_budget(0.020, 32, MOST, LEAST) == MOST


def test_steps_that_were_not_measured_do_not_count() -> None:
    model = StepTimeModel()
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        for _ in range(20):
            model.observe(1, 100, seconds)
    assert model.predict(1, 100) == 0
    assert model.chunk_budget(0.001, 1, MOST, LEAST) == MOST


STEPS = st.tuples(st.integers(0, 65_536), st.integers(0, 1 << 20), st.floats(1e-7, 1e4))


@given(st.lists(STEPS, min_size=1, max_size=60), st.floats(1e-6, 1e3), st.integers(0, 65_536), st.integers(1, 1 << 20))
def test_whatever_it_sees_predictions_and_budgets_make_sense(
    steps: list[tuple[int, int, float]], target_s: float, num_decoding: int, most: int
) -> None:
    model = StepTimeModel()
    for rows, num_tokens, seconds in steps:
        model.observe(rows, num_tokens, seconds)
    base, per_row, per_token = model.predict(0, 0), model.predict(64, 0), model.predict(0, 512)
    assert 0 <= base <= min(per_row, per_token)
    assert max(per_row, per_token) < 1e9
    least = min(LEAST, most)
    budget = model.chunk_budget(target_s, num_decoding, most, least)
    assert isinstance(budget, int)
    assert least <= budget <= most
    assert budget <= model.chunk_budget(2 * target_s, num_decoding, most, least)
    if least < budget < most:
        assert model.predict(num_decoding, budget) <= target_s

"""Generated traces: as many, as often, as long and from whom the options say, and the same every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pagoda.bench.scheduler.options import SimulationOptions
from pagoda.bench.scheduler.workload import Client, generate, parse_clients

MANY = SimulationOptions(num_prompts=20_000, request_rate=50.0, random_input_len=200, random_output_len=50)


def test_the_seed_decides() -> None:
    options = replace(
        MANY, num_prompts=200, num_turns=3, length_distribution="lognormal", random_prefix_len=16, num_prefixes=4
    )
    assert generate(options, 8192) == generate(options, 8192)
    assert generate(options, 8192) != generate(replace(options, seed=1), 8192)


def test_one_option_leaves_the_other_draws_alone() -> None:
    options = replace(MANY, num_prompts=100, length_distribution="pareto")
    before, after = generate(options, 8192), generate(replace(options, burstiness=0.2), 8192)
    assert [each.num_prompt_tokens for each in before] == [each.num_prompt_tokens for each in after]
    assert [each.arrival_s for each in before] != [each.arrival_s for each in after]


@pytest.mark.parametrize("burstiness", [1.0, 0.25, 4.0])
def test_arrivals(burstiness: float) -> None:
    trace = generate(replace(MANY, burstiness=burstiness), 8192)
    gaps = np.diff([0.0, *(request.arrival_s for request in trace)])
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_all_at_once() -> None:
    trace = generate(replace(MANY, num_prompts=10, request_rate=float("inf")), 8192)
    assert {request.arrival_s for request in trace} == {0.0}


def test_constant_lengths() -> None:
    trace = generate(replace(MANY, num_prompts=10, random_prefix_len=16), 8192)
    assert {(each.num_prompt_tokens, each.num_output_tokens) for each in trace} == {(216, 50)}


@pytest.mark.parametrize("distribution", ["lognormal", "pareto"])
def test_long_tails(distribution: str) -> None:
    trace = generate(replace(MANY, length_distribution=distribution, length_cv=0.6), 1 << 20)
    lengths = np.array([request.num_prompt_tokens for request in trace])
    assert lengths.mean() == pytest.approx(200, rel=0.05)
    # A Pareto distribution's sample variance is dominated by its few largest values.
    assert lengths.std() / lengths.mean() == pytest.approx(0.6, rel=0.1 if distribution == "lognormal" else 0.5)
    assert lengths.max() > 6 * lengths.mean()


def test_nothing_is_longer_than_the_model_allows() -> None:
    options = replace(
        MANY, num_prompts=2000, num_turns=4, length_distribution="pareto", length_cv=3.0, random_prefix_len=100
    )
    trace = generate(options, 512)
    assert max(each.num_prompt_tokens + each.num_output_tokens for each in trace) == 512
    assert min(each.num_prompt_tokens for each in trace) > 100


def test_sessions_grow_until_they_are_too_long() -> None:
    options = SimulationOptions(
        num_prompts=7, num_turns=4, random_input_len=100, random_output_len=50, random_prefix_len=20
    )
    trace = generate(options, 420)
    assert [each.num_prompt_tokens for each in trace] == [120, 270, 120, 270, 120, 270, 120]
    assert [each.session_id for each in trace] == [0, 0, 2, 2, 4, 4, 6]
    assert [each.follows for each in trace] == [None, 0, 1, 2, None, 4, 5]


def test_clients_and_prefixes_have_their_shares() -> None:
    trace = generate(replace(MANY, clients=("a:1", "b:3:5"), random_prefix_len=8, num_prefixes=4), 8192)
    of_b = [request for request in trace if request.client_id == "b"]
    assert len(of_b) / len(trace) == pytest.approx(0.75, abs=0.02)
    assert {request.priority for request in of_b} == {5}
    counts = np.bincount([request.prefix_id for request in trace if request.prefix_id is not None])
    assert counts / len(trace) == pytest.approx([0.25] * 4, abs=0.02)


def test_clients_are_parsed() -> None:
    assert parse_clients(("a:1", "b:0.5:-2")) == [Client("a", 1.0, 0), Client("b", 0.5, -2)]
    for wrong in ("a", "a:x", "a:0", "a:1:2:3", "a:1:x"):
        with pytest.raises(ValueError, match="clients"):
            parse_clients((wrong,))
    with pytest.raises(ValueError, match="twice"):
        parse_clients(("a:1", "a:2"))

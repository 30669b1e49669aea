"""What a request gets does not depend on its neighbours, its row, how it is cut into steps, or lost places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pagoda.v1 import step_pb2

# Budget per step, seed of the planner's choice of rows and blocks, rows, preemption.
WAYS = [
    {"budget": 512, "seed": 1, "num_rows": 6},
    {"budget": 512, "seed": 2, "num_rows": 1},
    {"budget": 13, "seed": 3, "num_rows": 4},
    {"budget": 100, "seed": 4, "num_rows": 6, "preempt_at": range(2, 40, 5)},
    {"budget": 9, "seed": 5, "num_rows": 3, "preempt_at": range(30, 200, 25)},
]


def _samplings(count: int) -> list[step_pb2.RowSampling]:
    kinds = [
        {"temperature": 1.0},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 10},
        {"temperature": 1.0, "min_p": 0.1, "top_p": 0.95, "top_k": 40},
    ]
    return [step_pb2.RowSampling(**({"top_p": 1.0, "seed": 7 * i} | kinds[i % len(kinds)])) for i in range(count)]


@pytest.mark.parametrize(
    ("name", "dtype", "kv_cache_dtype"),
    [
        ("llama", "float32", "auto"),
        ("gemma3", "float32", "auto"),
        ("llama", "bfloat16", "auto"),
        ("gemma3", "float32", "int8"),
        ("llama", "bfloat16", "int8"),
    ],
)
def test_tokens_are_the_same_however_they_are_computed(
    name: str, dtype: str, kv_cache_dtype: str, reference: Callable[..., Any], make_planner: Callable[..., Any]
) -> None:
    expected = reference(name)
    samplings = _samplings(len(expected.prompts))
    outputs = []
    for way in WAYS:
        way = dict(way)
        preempt_at = way.pop("preempt_at", ())
        planner = make_planner(
            expected.folder, max_model_len=expected.max_model_len, dtype=dtype, kv_cache_dtype=kv_cache_dtype, **way
        )
        requests = planner.generate(expected.prompts, samplings=samplings, preempt_at=preempt_at)
        outputs.append([request.tokens for request in requests])
    for output in outputs[1:]:
        assert output == outputs[0]
    sampled = [tokens[-20:] for tokens, sampling in zip(outputs[0], samplings, strict=True) if sampling.temperature]
    assert all(len(set(tokens)) > 5 for tokens in sampled)

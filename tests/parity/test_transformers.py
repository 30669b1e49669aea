"""The same tokens and logits as transformers, for every family and rope, however the work is cut into steps.

With the native kernels, where they take the heads, and with plain torch; `interpreted/` has the same for the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

CASES = [
    "llama",
    "llama-biases",
    "llama-mqa-tied-sharded",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "qwen2-yarn",
    "qwen2-window",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-short-factors",
    "phi3-long-factors",
]


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("budget", [7, 16, 64, 512])
@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_and_logits(
    name: str, budget: int, kernels: str, reference: Callable[..., Any], make_planner: Callable[..., Any]
) -> None:
    expected = reference(name)
    planner = make_planner(
        expected.folder, budget=budget, seed=budget, max_model_len=expected.max_model_len, kernels=kernels
    )
    requests = planner.generate(expected.prompts)
    for i, request in enumerate(requests):
        assert request.tokens[request.num_prompt :] == expected.outputs[i], f"prompt of {request.num_prompt} tokens"
        logits = torch.stack([request.logits[position] for position in range(request.num_prompt)])
        torch.testing.assert_close(logits, expected.logits[i], atol=1e-4, rtol=1e-4)

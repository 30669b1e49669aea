"""The same tokens and logits as transformers with Triton's kernels, for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

# Every family, and every way in which they differ that a kernel sees; kinds of ropes differ in their tables only.
CASES = [
    "llama-mqa-tied-sharded",
    "qwen2-window",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3-short-factors",
]
# The interpreter takes milliseconds per token and layer: a prompt longer than the windows, in chunks, beside another
# one that is decoding already.
LENGTHS, NUM_NEW, BUDGET = (2, 50), 3, 24


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_and_logits(name: str, reference: Callable[[str], Any], make_planner: Callable[..., Any]) -> None:
    expected = reference(name)
    chosen = [i for i, prompt in enumerate(expected.prompts) if len(prompt) in LENGTHS]
    planner = make_planner(
        expected.folder, budget=BUDGET, seed=1, max_model_len=expected.max_model_len, kernels="triton"
    )
    requests = planner.generate([expected.prompts[i] for i in chosen], NUM_NEW)
    for i, request in zip(chosen, requests, strict=True):
        assert request.tokens[request.num_prompt :] == expected.outputs[i][:NUM_NEW]
        logits = torch.stack([request.logits[position] for position in range(request.num_prompt)])
        torch.testing.assert_close(logits, expected.logits[i], atol=1e-4, rtol=1e-4)

"""The bundled model answers as it does in transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pagoda.bundled

FOLDER = Path(pagoda.bundled.__file__).parent / "chat"


@pytest.mark.skipif(not (FOLDER / "config.json").exists(), reason="the bundled model is not there")
def test_greedy_tokens(make_planner: Callable[..., Any]) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    rng = random.Random(0)
    prompts = [[rng.randrange(model.config.vocab_size) for _ in range(length)] for length in (1, 20, 100, 600)]
    planner = make_planner(FOLDER, budget=90, dtype="float32", max_model_len=1000)
    for request in planner.generate(prompts):
        prompt = torch.tensor([request.tokens[: request.num_prompt]])
        # No end: the planner knows none.
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            eos_token_id=None,
            max_new_tokens=len(request.tokens) - request.num_prompt,
        )
        assert request.tokens == expected[0].tolist()
        logits = torch.stack([request.logits[position] for position in range(request.num_prompt)])
        with torch.inference_mode():
            torch.testing.assert_close(logits, model(prompt).logits[0], atol=1e-3, rtol=1e-3)

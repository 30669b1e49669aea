"""A model draws the same tokens whether its head computes all logits or only those that matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from step_plans import make_plan
from torch import Tensor

from pagoda.executor import kernels
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.runner import load_runner
from pagoda.kernels.cpu.head import CpuHead
from pagoda.kernels.cpu.library import best_level
from pagoda.kernels.sampling import SamplingTensors, Shortlist
from pagoda.rpc.arrays import unpack_u32

VOCAB_SIZE = 16384
SAMPLING = [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 8, "top_p": 0.9}, {"temperature": 0.0}]


@pytest.fixture
def large_head(tiny_model: Path) -> Path:
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"vocab_size": VOCAB_SIZE, "head_dim": 16}
    (tiny_model / "config.json").write_text(json.dumps(config))
    return tiny_model


def generate(folder: Path, dtype: str, num_tokens: int = 20) -> list[list[int]]:
    runner = load_runner(
        ExecutorOptions(
            model=str(folder),
            load_format="dummy",
            device="cpu",
            dtype=dtype,
            threads=2,
            kernels="cpu",
            max_num_seqs=4,
            max_model_len=64,
            num_gpu_blocks_override=12,
        )
    )
    starts = [
        {
            "row": row,
            "tokens": [7 * row + 3, 11, 5],
            "blocks": list(range(4 * row, 4 * row + 4)),
            "sampling": {"top_p": 1.0, "seed": row} | sampling,
        }
        for row, sampling in enumerate(SAMPLING)
    ]
    tokens: list[list[int]] = [[] for _ in SAMPLING]
    for step in range(1, num_tokens + 1):
        first = step == 1
        plan = make_plan(dict.fromkeys(range(3), 3) if first else None, step=step, starts=starts if first else None)
        for row, token in enumerate(unpack_u32(runner.execute(plan).token_ids).tolist()):
            tokens[row].append(token)
    return tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_tokens(large_head: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if dtype == "bfloat16" and best_level() != "avx512_bf16":
        pytest.skip("torch computes bfloat16 on this processor")
    monkeypatch.setattr(kernels, "_WORTH_SHORTLISTS", 1 << 40)
    expected = generate(large_head, dtype)
    shortlist, found = CpuHead.shortlist, []

    def recording(head: CpuHead, x: Tensor, rows: SamplingTensors) -> Shortlist | None:
        found.append(shortlist(head, x, rows))
        return found[-1]

    monkeypatch.setattr(kernels, "_WORTH_SHORTLISTS", 0)
    monkeypatch.setattr(CpuHead, "shortlist", recording)
    assert generate(large_head, dtype) == expected
    assert len(found) == 20
    assert sum(each is not None for each in found) > 10

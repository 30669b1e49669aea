"""The cost model against closed forms and against what others have measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagoda.bench.scheduler.cost import PRESETS, CostModel, DeviceOptions, StepWork

COST = CostModel(
    weight_bytes=1000,
    kv_bytes_per_token=10,
    flops_per_token=2000,
    attention_flops_per_pair=40,
    memory_bandwidth=100,
    flop_rate=400,
    host_bandwidth=50,
    step_overhead_s=0.5,
)


def test_decoding_is_bound_by_memory() -> None:
    # Weights 1000 / 100; keys and values 30 * 10 / 100.
    assert COST.step_s(StepWork(num_tokens=1, num_context_tokens=30, num_attention_pairs=30)) == 0.5 + 10 + 3


def test_prompts_are_bound_by_arithmetic() -> None:
    # 8 * 2000 / 400; 36 * 40 / 400.
    assert COST.step_s(StepWork(num_tokens=8, num_context_tokens=8, num_attention_pairs=36)) == 0.5 + 40 + 3.6


def test_copies() -> None:
    assert COST.step_s(StepWork(0, 0, 0, num_moved_tokens=5)) == 0.5 + 1
    assert COST.step_s(StepWork(0, 0, 0, num_copied_tokens=5)) == 0.5 + 1
    assert COST.step_s(StepWork(0, 0, 0)) == 0.5


def test_a_chunked_prompt_has_as_many_pairs_as_a_whole_one() -> None:
    costless = replace(COST, weight_bytes=0, kv_bytes_per_token=0, step_overhead_s=0)
    whole = costless.step_s(StepWork(8, 8, 8 * 9 // 2))
    chunks = [costless.step_s(StepWork(4, 4, 10)), costless.step_s(StepWork(4, 8, 4 * 4 + 10))]
    assert sum(chunks) == pytest.approx(whole)


def test_sizes_of_the_presets() -> None:
    llama, qwen = PRESETS["h100-8b"].cost, PRESETS["cpu-0.5b"].cost
    # Llama-3.1-8B: 8.03 billion parameters, 0.53 of them in the embedding; 128 KiB of keys and values per token.
    assert llama.weight_bytes == pytest.approx(2 * 7.5e9, rel=0.01)
    assert llama.kv_bytes_per_token == 128 * 1024
    # Qwen2.5-0.5B: 494 million with the tied embedding.
    assert qwen.weight_bytes == pytest.approx(988e6, rel=0.01)
    assert qwen.kv_bytes_per_token == 12 * 1024


@pytest.mark.parametrize(
    ("num_input", "num_output", "published"),
    [(128, 128, 27_911), (128, 2048, 26_221), (1000, 1000, 17_744), (2048, 2048, 12_194)],
)
def test_throughput_is_near_what_nvidia_publishes(num_input: int, num_output: int, published: float) -> None:
    """Output tokens/s of Llama-3.1-8B FP8 on one H200, TensorRT-LLM 1.0."""
    preset = PRESETS["h200-8b-fp8"]
    # In a steady state each row has half its answer, and each step brings the prompts of the rows that begin.
    num_rows = preset.max_num_seqs
    num_prompts = num_rows / num_output
    work = StepWork(
        num_tokens=round(num_rows + num_prompts * num_input),
        num_context_tokens=round(num_rows * (num_input + num_output / 2)),
        num_attention_pairs=round(num_rows * (num_input + num_output / 2) + num_prompts * num_input**2 / 2),
    )
    assert num_rows / preset.cost.step_s(work) == pytest.approx(published, rel=0.1)


def test_a_0_5b_model_on_two_cores() -> None:
    """One stream is bound by one pass over the weights; measured engines give 35 to 45 tokens/s."""
    step_s = PRESETS["cpu-0.5b"].cost.step_s(StepWork(1, 192, 192))
    assert 35 < 1 / step_s < 45


def test_every_number_can_be_given() -> None:
    assert DeviceOptions().cost_model == PRESETS["h100-8b"].cost
    given = DeviceOptions(preset="cpu-0.5b", flop_rate=7.0, step_overhead_s=0.25).cost_model
    assert given == replace(PRESETS["cpu-0.5b"].cost, flop_rate=7.0, step_overhead_s=0.25)
    with pytest.raises(ValueError, match="flop_rate is -1"):
        DeviceOptions(flop_rate=-1.0).check_device()

"""What rounding costs: the bundled model's held-out answers, computed with each kind of weights and of KV cache.

    python tests/bench/quantization.py [--samples N]

An answer counts when each of its tokens is the most likely one given those before it. Perplexity is that of all tokens
of the answers. Everything is computed through the executor's runner, with its paged cache.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from report import circumstances, table

from pagoda.bundled import CHAT_MODEL
from pagoda.bundled.evaluate import held_out_samples, to_row
from pagoda.bundled.export import load_exported
from pagoda.executor.batch import StepInputs
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.runner import Runner, load_runner

WAYS = {
    "float32, torch": {"dtype": "float32", "kernels": "reference"},
    "bfloat16, torch": {"dtype": "bfloat16", "kernels": "reference"},
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "bfloat16, torch; int8 cache": {"dtype": "bfloat16", "kernels": "reference", "kv_cache_dtype": "int8"},
    "bfloat16; int8 cache": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    "int8; int8 cache": {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"},
}
BLOCK_SIZE = 16

Row = tuple[list[int], int]
"""Token ids, and how many of them at the end are the answer."""


def log_probabilities(runner: Runner, row: Row) -> tuple[torch.Tensor, bool]:
    """Of the answer's tokens, [tokens]; and whether each of them is the most likely one."""
    token_ids, num_answer = row
    num_tokens = len(token_ids) - 1
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    positions = np.arange(num_tokens)
    hidden = runner.forward(
        StepInputs(
            token_ids=np.array(token_ids[:-1], np.int32),
            positions=positions,
            slot_mapping=positions,
            cu_seqlens_q=np.array([0, num_tokens], np.int32),
            seq_lens=np.array([num_tokens], np.int32),
            block_tables=np.arange(num_blocks, dtype=np.int32)[None],
            rows=np.zeros(1, np.int64),
            sample_rows=np.empty(0, np.int64),
            sample_tokens=np.empty(0, np.int64),
        )
    )
    logits = runner.model.decoder.logits(hidden[-num_answer:])
    answer = torch.tensor(token_ids[-num_answer:])
    chosen = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
    return chosen, bool((logits.argmax(-1) == answer).all())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="per task and per recall distance")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    print(circumstances())
    _, tokenizer = load_exported(CHAT_MODEL)
    tasks = {
        task: [to_row(tokenizer, sample) for sample in samples]
        for task, samples in held_out_samples(args.samples, args.seed).items()
    }
    lines = []
    for name, options in WAYS.items():
        runner = load_runner(
            ExecutorOptions(model=str(CHAT_MODEL), device="cpu", max_num_seqs=1, block_size=BLOCK_SIZE, **options)
        )
        total, count, shares = 0.0, 0, []
        for rows in tasks.values():
            results = [log_probabilities(runner, row) for row in rows]
            total += sum(float(chosen.sum()) for chosen, _ in results)
            count += sum(len(chosen) for chosen, _ in results)
            shares.append(f"{100 * sum(solved for _, solved in results) / len(rows):.1f}")
        lines.append([name, f"{math.exp(-total / count):.5f}", *shares])
    print(f"\nPerplexity of {count:,} tokens, and percent of {args.samples} answers per column that are exact.\n")
    print(table(["weights", "perplexity", *tasks], lines))


if __name__ == "__main__":
    main()

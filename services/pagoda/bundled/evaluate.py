"""Held-out accuracy of a model: during training, or of an exported folder by `python -m pagoda.bundled.evaluate`.

A sample counts as solved when every token of the expected answer, the end mark included, is the most likely one
given those before it. That is the same as greedy decoding writing exactly that answer, at the price of one forward
pass. For JSON and tool calls it is stricter than the checkers, which let spacing and key order vary.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from pagoda.bundled import CHAT_MODEL
from pagoda.bundled.corpus import encode
from pagoda.bundled.export import load_exported
from pagoda.bundled.model import Llama
from pagoda.bundled.tasks import RECALL_DISTANCES, SHORT_TASKS, TOOL_TASKS, Sample, recall

TOKENS_PER_PASS = 8192


def held_out_samples(samples: int, seed: int) -> dict[str, list[Sample]]:
    """`samples` held-out samples for each task and for each recall distance."""
    rng = random.Random(seed)
    rows = {
        task: [generate(rng, "held_out") for _ in range(samples)]
        for task, generate in {**SHORT_TASKS, **TOOL_TASKS}.items()
    }
    for distance in RECALL_DISTANCES:
        rows[f"recall {distance}"] = [recall(rng, "held_out", distance) for _ in range(samples)]
    return rows


def accuracy(model: Llama, tokenizer: Tokenizer, samples: Sequence[Sample]) -> float:
    """Share of samples whose answer greedy decoding reproduces."""
    rows = sorted((to_row(tokenizer, sample) for sample in samples), key=lambda row: len(row[0]))
    solved = 0
    while rows:
        # Ascending lengths: the longest of a pass bounds the padding of all of it.
        size = 1
        while size < len(rows) and (size + 1) * len(rows[size][0]) <= TOKENS_PER_PASS:
            size += 1
        solved += _solved(model, rows[:size])
        rows = rows[size:]
    return solved / len(samples)


def to_row(tokenizer: Tokenizer, sample: Sample) -> tuple[list[int], int]:
    """Token ids, and how many of them at the end are the answer."""
    ids, own = encode(tokenizer, sample.messages, sample.tools)
    ids, own = ids[:-1], own[:-1]  # the line break behind the end mark
    answer = 0
    while own[-1 - answer]:
        answer += 1
    return ids, answer


@torch.no_grad()
def _solved(model: Llama, rows: Sequence[tuple[list[int], int]]) -> int:
    length = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    answers = np.zeros((len(rows), length), dtype=np.bool_)
    for index, (row, size) in enumerate(rows):
        ids[index, : len(row)] = row
        answers[index, len(row) - size : len(row)] = True
    tensor, targets = torch.from_numpy(ids), torch.from_numpy(answers)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tensor[:, :-1], targets[:, 1:])
    hits = logits.argmax(-1) == tensor[:, 1:][targets[:, 1:]]
    sizes = [size for _, size in rows]
    return sum(bool(part.all()) for part in hits.split(sizes))


def main() -> None:
    """Print a table of the held-out accuracy of an exported model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=CHAT_MODEL, help="folder of the model")
    parser.add_argument("--samples", type=int, default=200, help="per task and per recall distance")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_exported(options.model)
    for task, samples in held_out_samples(options.samples, options.seed).items():
        print(f"{task:<12} {len(samples):>5} {100 * accuracy(model, tokenizer, samples):>6.1f} %", flush=True)


if __name__ == "__main__":
    main()

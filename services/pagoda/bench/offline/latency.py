"""`pagoda bench latency`: how long one batch of equal prompts takes, from the first to the last token of all.

The scheduler's core and the executor's model in this process; no tokenization, no detokenization, no network.
"""

from __future__ import annotations

import json
import time

import numpy as np
from tqdm import trange

from pagoda.bench.circumstances import circumstances
from pagoda.bench.dataset import random_prompts
from pagoda.bench.offline.options import LatencyOptions
from pagoda.bench.offline.run import run
from pagoda.offline.engine import Engine

PERCENTS = (10, 25, 50, 75, 90, 99)


def main(options: LatencyOptions) -> int:
    """Raises PagodaError where the model cannot be loaded or does not take such requests."""
    with options.open() as engine:
        print(f"{options.folder}, {engine.spec.model.dtype}; {circumstances()}")
        latencies = measure(engine, options)
    percentiles = dict(zip(PERCENTS, np.percentile(latencies, PERCENTS).tolist(), strict=True))
    print(f"Avg latency: {np.mean(latencies)} seconds")
    for percent, seconds in percentiles.items():
        print(f"{percent}% percentile latency: {seconds} seconds")
    if options.output_json:
        result = {
            "model_id": str(options.folder),
            "avg_latency": float(np.mean(latencies)),
            "latencies": latencies,
            "percentiles": percentiles,
        }
        options.output_json.write_text(json.dumps(result, indent=4) + "\n")
    return 0


def measure(engine: Engine, options: LatencyOptions) -> list[float]:
    """Seconds of each iteration that counts."""
    lengths = [options.input_len] * options.batch_size
    prompts = random_prompts(options.seed, lengths, options.output_len, engine.spec.model.vocab_size)
    latencies = []
    for number in trange(options.num_iters_warmup + options.num_iters, unit="iteration", leave=False, disable=None):
        began = time.perf_counter()
        run(engine, prompts)
        if number >= options.num_iters_warmup:
            latencies.append(time.perf_counter() - began)
    return latencies

"""`pagoda bench throughput`: many prompts, all there at the start, through continuous batching as fast as it goes.

The scheduler's core and the executor's model in this process; texts are encoded before the time counts, and nothing is
detokenized.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from pagoda.bench.circumstances import circumstances
from pagoda.bench.dataset import Prompt, make_prompts
from pagoda.bench.offline.options import ThroughputOptions
from pagoda.bench.offline.run import run
from pagoda.errors import InvalidArgumentError
from pagoda.offline.engine import Engine


@dataclass(frozen=True, slots=True)
class Throughput:
    elapsed_s: float
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    def __str__(self) -> str:
        return (
            f"Throughput: {self.num_requests / self.elapsed_s:.2f} requests/s, "
            f"{self.num_tokens / self.elapsed_s:.2f} total tokens/s, "
            f"{self.num_output_tokens / self.elapsed_s:.2f} output tokens/s\n"
            f"Total num prompt tokens:  {self.num_prompt_tokens}\n"
            f"Total num output tokens:  {self.num_output_tokens}"
        )


def main(options: ThroughputOptions) -> int:
    """Raises PagodaError where the model cannot be loaded or does not take such requests."""
    folder = options.folder
    with options.open() as engine:
        print(f"{folder}, {engine.spec.model.dtype}; {circumstances()}")
        vocab_size = engine.spec.model.vocab_size
        prompts = encoded(make_prompts(options, vocab_size), folder)
        if options.num_warmups:
            run(engine, encoded(make_prompts(options.warmup, vocab_size), folder))
        found = measure(engine, prompts)
    print(found)
    if options.output_json:
        result = {
            "model_id": str(folder),
            "elapsed_time": found.elapsed_s,
            "num_requests": found.num_requests,
            "total_num_tokens": found.num_tokens,
            "total_num_prompt_tokens": found.num_prompt_tokens,
            "total_num_output_tokens": found.num_output_tokens,
            "requests_per_second": found.num_requests / found.elapsed_s,
            "tokens_per_second": found.num_tokens / found.elapsed_s,
            "output_tokens_per_second": found.num_output_tokens / found.elapsed_s,
        }
        options.output_json.write_text(json.dumps(result, indent=4) + "\n")
    return 0


def measure(engine: Engine, prompts: Sequence[Prompt]) -> Throughput:
    """prompts: of token ids"""
    with tqdm(total=len(prompts), unit="request", leave=False, disable=None) as progress:
        began = time.perf_counter()
        requests = run(engine, prompts, progress.update)
        elapsed_s = time.perf_counter() - began
    return Throughput(
        elapsed_s,
        len(requests),
        sum(request.num_prompt_tokens for request in requests),
        sum(request.num_output_tokens for request in requests),
    )


def encoded(prompts: Sequence[Prompt], folder: Path) -> list[Prompt]:
    """Texts as tokens of the model in `folder`. Raises InvalidArgumentError where it has no tokenizer."""
    if not any(isinstance(prompt.content, str) for prompt in prompts):
        return list(prompts)
    from pagoda.text.tokenizer import TextTokenizer

    try:
        tokenizer = TextTokenizer.load(folder)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"the dataset is text, and {folder} has no tokenizer to encode it: {error}"
        ) from error
    return [
        replace(prompt, content=tokenizer.encode(prompt.content)) if isinstance(prompt.content, str) else prompt
        for prompt in prompts
    ]

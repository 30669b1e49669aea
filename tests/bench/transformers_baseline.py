"""transformers' `generate` on a static batch beside Pagoda's engine in one process, on the same weights.

    python tests/bench/transformers_baseline.py MODEL [--cases 1x128x128 8x128x128 32x256x128]

A case is prompts x input tokens x output tokens; all prompts of a case are equally long, which is the best case of a
static batch. Both sides run the whole case, prompts and all, and are timed from the first to the last token's end:
Pagoda through scheduler and executor as `pagoda bench throughput` does, transformers greedily with a KV cache.

Each side is a process of its own (it keeps its threads), and is idle while the other is measured; they take turns in
every round. Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from report import circumstances, table

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from bandwidth import BandwidthProbe

# (prompts, input tokens, output tokens)
Case = tuple[int, int, int]
# Runs a case with a seed; seconds.
RunCase = Callable[[Case, int], float]


@contextmanager
def pagoda(model: str, dtype: str, cases: list[Case]) -> Iterator[RunCase]:
    from pagoda.bench.dataset import random_prompts
    from pagoda.bench.offline.options import EngineOptions
    from pagoda.bench.offline.throughput import measure

    num_seqs = max(num_prompts for num_prompts, _, _ in cases)
    longest = max(num_input + num_output for _, num_input, num_output in cases)
    options = EngineOptions(
        model=model,
        device="cpu",
        dtype=dtype,
        max_num_seqs=num_seqs,
        max_model_len=longest,
        enable_prefix_caching=False,
    )
    with options.open() as engine:

        def run(case: Case, seed: int) -> float:
            num_prompts, num_input, num_output = case
            prompts = random_prompts(seed, [num_input] * num_prompts, num_output, engine.spec.model.vocab_size)
            found = measure(engine, prompts)
            assert found.num_output_tokens == num_prompts * num_output
            return found.elapsed_s

        yield run


@contextmanager
def transformers(model: str, dtype: str, cases: list[Case]) -> Iterator[RunCase]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def run(case: Case, seed: int) -> float:
        num_prompts, num_input, num_output = case
        generator = torch.Generator().manual_seed(seed)
        prompts = torch.randint(loaded.config.vocab_size, (num_prompts, num_input), generator=generator)
        limits = {"max_new_tokens": num_output, "min_new_tokens": num_output}
        began = time.perf_counter()
        with torch.inference_mode():
            answers = loaded.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **limits,
            )
        elapsed_s = time.perf_counter() - began
        assert answers.shape == (num_prompts, num_input + num_output)
        return elapsed_s

    yield run


SIDES = {"Pagoda": pagoda, "transformers": transformers}


class Side:
    """One of SIDES in its own process: a case per line goes in, seconds come out."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, args.model, "--dtype", args.dtype, "--cases", *args.cases, "--side", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def run(self, case: Case, seed: int) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([case, seed]) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"a side has ended with exit code {self._process.wait()}")
        return float(line)


def serve(name: str, model: str, dtype: str, cases: list[Case]) -> None:
    """The loop of a side's process; what libraries print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    with SIDES[name](model, dtype, cases) as run:
        for line in sys.stdin:
            case, seed = json.loads(line)
            print(run(tuple(case), seed), file=answers, flush=True)


def compare(args: argparse.Namespace, cases: list[Case]) -> None:
    probe = BandwidthProbe()
    rates: dict[tuple[Case, str], list[float]] = {(case, name): [] for case in cases for name in SIDES}
    speeds: dict[Case, list[float]] = {case: [] for case in cases}
    with Side("Pagoda", args) as ours, Side("transformers", args) as theirs:
        sides = {"Pagoda": ours, "transformers": theirs}
        for side in sides.values():
            side.run((1, 16, 4), 0)
        for number in range(1, args.rounds + 1):
            for case in cases:
                for name, side in sides.items():
                    speeds[case].append(probe.gb_per_s())
                    rates[case, name].append(case[0] * case[2] / side.run(case, number))
    lines = []
    for case in cases:
        ratios = [us / them for us, them in zip(*(rates[case, name] for name in SIDES), strict=True)]
        lines.append(
            [
                "x".join(map(str, case)),
                *(f"{statistics.median(rates[case, name]):.1f}" for name in SIDES),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
                f"{min(speeds[case]):.0f} - {max(speeds[case]):.0f}",
            ]
        )
    print(table(["prompts x in x out", *(f"{name}, tokens/s" for name in SIDES), "ratio", "read GB/s"], lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder; peers/models.py makes some")
    parser.add_argument("--cases", nargs="+", default=["1x128x128", "8x128x128", "32x256x128"], metavar="NxINxOUT")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3, help="measure all so often; medians over the rounds are shown")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    cases: list[Case] = []
    for text in args.cases:
        num_prompts, num_input, num_output = (int(part) for part in text.split("x"))
        cases.append((num_prompts, num_input, num_output))
    if args.side:
        serve(args.side, args.model, args.dtype, cases)
        return
    print(circumstances(), flush=True)
    compare(args, cases)
    print(f"\nAfter {args.rounds} rounds: {circumstances()}; output tokens/s, medians; ratios of the pairs of a round.")


if __name__ == "__main__":
    main()

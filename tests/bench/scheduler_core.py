"""How long the scheduler's core takes per step, alone or beside vLLM's scheduler.

    python tests/bench/scheduler_core.py
    python tests/bench/scheduler_core.py --vllm PYTHON MODEL

PYTHON is an interpreter that has vLLM, MODEL a checkpoint folder of which only config.json is read. vLLM is measured
right before and after each round of Pagoda's. What is measured, and how, is in scheduler_cases.py; the executor is
stood in for by an echo, so there is no I/O. Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from echo_batch import EchoBatch
from report import circumstances
from scheduler_cases import (
    DECODE_ROWS,
    MAX_MODEL_LEN,
    MAX_NUM_BATCHED_TOKENS,
    VOCAB_SIZE,
    Measurement,
    Shape,
    measure,
)
from scheduler_tables import Rounds, tables

from pagoda.scheduler import codec
from pagoda.scheduler.core.plan import StepPlan, StepResult
from pagoda.scheduler.core.request import Request, RequestKey, Sampling
from pagoda.scheduler.core.scheduler import CoreOptions, Scheduler
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec, ModelSpec
from pagoda.v1 import step_pb2

LANE = "bench"


class CoreSubject:
    """A `scheduler_cases.Subject`."""

    def __init__(self, shape: Shape) -> None:
        model = ModelSpec("f", "llama", MAX_MODEL_LEN, VOCAB_SIZE, frozenset({2}), "bfloat16")
        spec = LaneSpec(
            LANE,
            ExecutorRole.MIXED,
            model,
            shape.block_size,
            shape.num_blocks,
            shape.num_rows,
            MAX_NUM_BATCHED_TOKENS,
        )
        self._scheduler = Scheduler(CoreOptions(max_num_waiting=1 << 20, max_plans_in_flight=shape.depth))
        self._scheduler.add_lane(LANE, spec)
        self._block_size = shape.block_size
        self._batch = EchoBatch(shape.num_rows)
        self._now = 0.0

    def build(self, number: int, token_ids: list[int], max_tokens: int) -> Request:
        sampling = Sampling(seed=number, max_tokens=max_tokens, ignore_eos=True)
        return Request(RequestKey("tokenizer", number), token_ids, sampling)

    def hash(self, request: Request) -> None:
        request.begin_hashes(self._block_size)

    def lookup(self, request: Request) -> int:
        return self._scheduler.lanes[LANE].find_prefix(request).num_tokens

    def submit(self, number: int, token_ids: list[int], max_tokens: int) -> None:
        self._scheduler.submit(self.build(number, token_ids, max_tokens), self._now)

    def plan(self) -> StepPlan | None:
        planned = self._scheduler.step(self._now)
        return planned[0][1] if planned else None

    def names_blocks(self, plan: StepPlan) -> bool:
        return bool(plan.block_rows)

    def encode(self, plan: StepPlan) -> bytes:
        return codec.encode_plan(plan)

    def settle(self) -> None:
        self._scheduler.settle()

    def execute(self, plan: StepPlan, encoded: bytes) -> tuple[StepResult, int]:
        rows = self._batch.run(step_pb2.StepPlan.FromString(encoded))
        return StepResult(plan.step, rows, np.full(len(rows), 7, np.uint32), forward_ns=1_000_000), len(rows)

    def commit(self, result: StepResult) -> None:
        self._now += 0.001
        self._scheduler.commit(LANE, result, self._now)
        self._scheduler.take_outputs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", nargs=2, metavar=("PYTHON", "MODEL"), help="also measure vLLM's scheduler")
    parser.add_argument("--rounds", type=int, default=3, help="measure all so often; medians over the rounds are shown")
    parser.add_argument("--rows", type=int, nargs="+", default=DECODE_ROWS, help="only these numbers of rows")
    parser.add_argument("--freeze", action="store_true", help="gc.freeze() before timing, in both")
    args = parser.parse_args()
    print(circumstances())
    ours, theirs = Rounds(), Rounds()
    for _ in range(args.rounds):
        if args.vllm:
            theirs.add(_measure_vllm(args))
        ours.add(measure(CoreSubject, rows=args.rows, freeze=args.freeze))
    if args.vllm:
        theirs.add(_measure_vllm(args))
    print(f"After {args.rounds} rounds: {circumstances()}\n")
    collector = f"thresholds {gc.get_threshold()}, {'frozen' if args.freeze else 'not frozen'} before timing"
    print("us per step: median (p99), mean; of each round, and of those the median. Garbage collector: " + collector)
    if theirs.version:
        print(f"vLLM {theirs.version}: AsyncScheduler where two plans are in flight; its service freezes at its start.")
    print(tables(ours.columns(), theirs.columns()))


def _measure_vllm(args: argparse.Namespace) -> Iterator[Measurement]:
    python, model = args.vllm
    script = Path(__file__).with_name("vllm_scheduler.py")
    command = [python, str(script), model, "--rows", *map(str, args.rows), *(["--freeze"] if args.freeze else [])]
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"{script.name} ended with status {process.returncode}")


if __name__ == "__main__":
    main()

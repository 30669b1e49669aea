"""How long the scheduler's core takes per step: plan + commit of steady decode, and of admitting prompts.

    python tests/bench/scheduler_core.py

The executor is stood in for by canned results, so what is timed is the core alone. Prints the hardware, the commit and
a table; asserts nothing.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from pathlib import Path

from pagoda.scheduler import codec
from pagoda.scheduler.core.plan import StepPlan, StepResult
from pagoda.scheduler.core.request import Request, RequestKey, Sampling
from pagoda.scheduler.core.scheduler import CoreOptions, Scheduler
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec, ModelSpec

BLOCK_SIZE = 16
PROMPT_TOKENS = 256
STEPS = 200
WARM_UP_STEPS = 5
ROWS = (1, 32, 256, 1024)
SHARED_PROMPT = list(range(1000, 1000 + 1024))


def make_scheduler(num_rows: int) -> Scheduler:
    model = ModelSpec("f", "llama", 8192, 32_000, frozenset({2}), "bfloat16")
    spec = LaneSpec("bench", ExecutorRole.MIXED, model, BLOCK_SIZE, 1 << 16, num_rows, 1 << 20)
    scheduler = Scheduler(CoreOptions(max_num_waiting=1 << 20))
    scheduler.add_lane("bench", spec)
    return scheduler


def submit(scheduler: Scheduler, number: int, token_ids: list[int]) -> None:
    sampling = Sampling(seed=number, max_tokens=4096, ignore_eos=True)
    scheduler.submit(Request(RequestKey("bench", number), token_ids, sampling), now=0.0)


def answer(plan: StepPlan) -> StepResult:
    """A result in which every row of a plan without half prompts samples."""
    return StepResult(plan.step, plan.rows, [7] * len(plan.rows))


class Stopwatch:
    """Collects the durations of its blocks."""

    def __init__(self) -> None:
        self._durations_ns: list[int] = []

    def __enter__(self) -> None:
        self._started_ns = time.perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._durations_ns.append(time.perf_counter_ns() - self._started_ns)

    @property
    def median_us(self) -> float:
        return statistics.median(self._durations_ns[WARM_UP_STEPS:]) / 1000


def time_decode(num_rows: int) -> list[float]:
    """Medians, in us, of plan, commit and protobuf of the plan at `num_rows` decoding rows."""
    scheduler = make_scheduler(num_rows)
    for number in range(num_rows):
        submit(scheduler, number, [number % 1000 + 3] * PROMPT_TOKENS)
    planning, committing, encoding = Stopwatch(), Stopwatch(), Stopwatch()
    for _ in range(STEPS):
        with planning:
            planned = scheduler.step(0.0)
        ((lane_id, plan),) = planned
        with encoding:
            codec.encode_plan(plan)
        result = answer(plan)
        with committing:
            scheduler.commit(lane_id, result)
        scheduler.take_outputs()
    return [watch.median_us for watch in (planning, committing, encoding)]


def time_admission() -> list[float]:
    """Medians, in us, for a prompt of 1,088 tokens of which 1,024 are cached: submit, admitting step, commit."""
    scheduler = make_scheduler(256)
    submitting, stepping, committing = Stopwatch(), Stopwatch(), Stopwatch()
    for number in range(STEPS):
        prompt = SHARED_PROMPT + [number + 3] * 64
        with submitting:
            submit(scheduler, number, prompt)
        with stepping:
            planned = scheduler.step(0.0)
        ((lane_id, plan),) = planned
        result = answer(plan)
        with committing:
            scheduler.commit(lane_id, result)
        scheduler.abort(RequestKey("bench", number))
        scheduler.take_outputs()
    return [watch.median_us for watch in (submitting, stepping, committing)]


def hardware() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


def commit_id() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return described.stdout.strip()


def main() -> None:
    print(f"{hardware()}; Python {platform.python_version()}; commit {commit_id()}")
    print(f"\nSteady decode, us per step (median of {STEPS} steps)\n")
    print("| rows | plan | commit | plan + commit | protobuf of the plan |")
    print("|---|---|---|---|---|")
    for num_rows in ROWS:
        plan, commit, encode = time_decode(num_rows)
        print(f"| {num_rows} | {plan:.0f} | {commit:.0f} | {plan + commit:.0f} | {encode:.0f} |")
    submitting, step, commit = time_admission()
    print("\nA prompt of 1,088 tokens, 1,024 of them cached, us\n")
    print("| submit | admitting step | commit |")
    print("|---|---|---|")
    print(f"| {submitting:.0f} | {step:.0f} | {commit:.0f} |")


if __name__ == "__main__":
    main()

"""The bundled model answers with the same words whatever computes it, and they are right."""

from __future__ import annotations

from pagoda.bench.canary import canary_samples, format_table
from pagoda.bench.offline.canary import answers, grade
from pagoda.bundled import CHAT_MODEL
from pagoda.bundled.export import load_exported
from pagoda.executor.config import ExecutorOptions
from pagoda.offline.engine import Engine

# The shortest ones, and a fact to be found again some blocks back.
TASKS = {"copy", "addition", "json", "reverse", "sort", "small_talk"}
NEAREST = 50


def test_one_table_for_all_kernels() -> None:
    _, tokenizer = load_exported(CHAT_MODEL)
    asked = [row for row in canary_samples(1, seed=0) if row[0] in TASKS or row[1] == NEAREST]
    assert len(asked) == len(TASKS) + 1
    texts = {}
    for kernels in ("reference", "cpu", "triton"):
        options = ExecutorOptions(
            model=str(CHAT_MODEL), device="cpu", dtype="float32", kernels=kernels, max_num_seqs=8, threads=1
        )
        with Engine(options) as engine:
            texts[kernels] = answers(engine, tokenizer, asked)
    assert texts["triton"] == texts["cpu"] == texts["reference"]
    rows = grade(asked, texts["triton"])
    assert all(row.correct == row.samples for row in rows), format_table(rows)

"""The bundled model's own questions on the device: the table of plain torch, and all targets met."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc", reason="the scheduler's messages need grpcio and googleapis-common-protos")
pytest.importorskip("google.rpc", reason="the scheduler's messages need grpcio and googleapis-common-protos")
pytest.importorskip("tokenizers")

from pagoda.bench.canary import canary_samples, format_table
from pagoda.bench.offline.canary import answers, grade
from pagoda.bundled import CHAT_MODEL
from pagoda.bundled.export import load_exported
from pagoda.executor.config import ExecutorOptions
from pagoda.offline.engine import Engine

SAMPLES = 20


def test_one_table_for_all_kernels() -> None:
    _, tokenizer = load_exported(CHAT_MODEL)
    asked = list(canary_samples(SAMPLES, seed=0))
    tables = {}
    for kernels in ("reference", "triton"):
        options = ExecutorOptions(
            model=str(CHAT_MODEL), device="cuda", dtype="float32", kernels=kernels, kv_cache_memory_bytes=2 << 30
        )
        with Engine(options) as engine:
            rows = grade(asked, answers(engine, tokenizer, asked))
        assert all(row.is_met for row in rows), format_table(rows)
        tables[kernels] = format_table(rows)
    assert tables["triton"] == tables["reference"]

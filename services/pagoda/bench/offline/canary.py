"""The canary's questions through an engine in this process: what a way to compute does to the answers.

For the bundled model only, whose chat template is known here as plain Python. `pagoda bench canary` asks a server.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tokenizers import Tokenizer

from pagoda.bench.canary import MAX_ANSWER_TOKENS, CanaryRow, target_of
from pagoda.bundled.evaluate import to_row
from pagoda.bundled.tasks import Reply, Sample, is_correct
from pagoda.offline.engine import Engine
from pagoda.scheduler.core.request import FinishReason, Sampling

Asked = tuple[str, int | None, list[Sample]]
"""Task, distance and samples of a row, as `canary_samples` makes them."""


def answers(engine: Engine, tokenizer: Tokenizer, asked: Iterable[Asked]) -> list[str]:
    """The greedy answers to the samples' prompts, markup of tools included, all asked at once."""
    requests = []
    for sample in itertools.chain.from_iterable(samples for _, _, samples in asked):
        token_ids, num_answer = to_row(tokenizer, sample)
        sampling = Sampling(temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)
        requests.append(engine.submit(token_ids[:-num_answer], sampling))
    engine.finish()
    texts = []
    for request in requests:
        written = request.token_ids[request.num_prompt_tokens :]
        assert request.end is not None
        if request.end.reason is FinishReason.STOP:
            written = written[:-1]
        texts.append(tokenizer.decode(list(written), skip_special_tokens=False))
    return texts


def grade(asked: Iterable[Asked], texts: Iterable[str]) -> list[CanaryRow]:
    """texts: the answers to all samples, in their order"""
    given = iter(texts)
    rows = []
    for task, distance, samples in asked:
        correct = sum(is_correct(sample, Reply(next(given))) for sample in samples)
        rows.append(CanaryRow(task, distance, len(samples), correct, errors=0, target=target_of(task, distance)))
    return rows

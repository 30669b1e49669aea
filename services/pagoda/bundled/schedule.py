"""Which batches a training step takes, by the share of the run that is over.

Every step takes a batch of short tasks or tools and a batch of recall contexts, so nothing is forgotten. Contexts
start short: looking a value up appears there first, and longer contexts then only stretch it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pagoda.bundled.corpus import Batch, Corpus

TOKENS_PER_BATCH = 3072
RECALL_TOKENS_PER_BATCH = 2048
"""Few, for many steps: copying and recall appear after some number of steps rather than of tokens."""
LENGTH_STAGES: tuple[tuple[float, dict[int, float]], ...] = (
    (0.29, {128: 0.2, 256: 0.8}),
    (0.33, {256: 0.2, 512: 0.4, 1024: 0.4}),
    (1.00, {128: 0.05, 256: 0.1, 512: 0.1, 1024: 0.25, 2048: 0.5}),
)
"""(end of the stage as a share of the run, weight of each context length in it)."""

CHAINED_FROM = 0.03
"""Share of the run from which conversations of several tasks are used as well."""
CHAINED_SHARE = 0.75
TOOL_SHARE = 0.35
TOOL_LENGTH = 384


@dataclass(frozen=True)
class StepPlan:
    """The batches of one step; the loss is the mean of their losses."""

    batches: tuple[Batch, Batch]

    @property
    def num_tokens(self) -> int:
        return sum(batch.num_tokens for batch in self.batches)


def plan_step(corpus: Corpus, rng: random.Random, progress: float) -> StepPlan:
    """The next step's batches. progress: share of the run that is over, in [0, 1]."""
    if rng.random() < TOOL_SHARE:
        tasks = corpus.tool_batch(TOKENS_PER_BATCH // TOOL_LENGTH, TOOL_LENGTH)
    else:
        is_chained = progress > CHAINED_FROM and rng.random() < CHAINED_SHARE
        # Most single tasks fit 64 tokens; rows of 128 are for the few longer ones.
        length = 256 if is_chained else rng.choice((64, 64, 64, 128))
        tasks = corpus.short_batch(TOKENS_PER_BATCH // length, length, is_chained)
    lengths = next(weights for end, weights in LENGTH_STAGES if progress <= end)
    length = rng.choices(list(lengths), list(lengths.values()))[0]
    return StepPlan((tasks, corpus.recall_batch(RECALL_TOKENS_PER_BATCH // length, length)))

"""Training rows and batches: conversations of task samples, tokenized, with the loss on the model's own tokens.

Three kinds of rows: chains of short tasks; conversations with tools; long contexts dense with recall questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pagoda.bundled.chat_format import segments
from pagoda.bundled.recall_dialogue import RecallDialogue
from pagoda.bundled.tasks import SHORT_TASKS, Message, Sample, system_message
from pagoda.bundled.tasks.tools import case_messages, tool_cases

SYSTEM_SHARE = 0.15
"""Share of conversations that open with a plain system prompt."""
TOOL_INTERLUDE_SHARE = 0.2
"""How often a short task stands before a tool request."""


@dataclass(frozen=True)
class Batch:
    """ids: [rows, length] int64, padded with 0 at the right; targets: [rows, length] bool, true where the token is
    the model's own, so that it is predicted from the position before it."""

    ids: NDArray[np.int64]
    targets: NDArray[np.bool_]

    @property
    def num_tokens(self) -> int:
        return self.ids.size


class Corpus:
    """Draws batches of the training split from a seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int, task_weights: dict[str, float]) -> None:
        """task_weights: relative share of each of SHORT_TASKS."""
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.task_weights = task_weights

    def short_batch(self, rows: int, length: int, is_chained: bool) -> Batch:
        """Conversations of one short task each, or of short tasks one after another."""
        return self._batch(rows, length, lambda: (self._chain(length if is_chained else 1), ()))

    def tool_batch(self, rows: int, length: int) -> Batch:
        """Conversations that call the tools of their system prompt."""
        return self._batch(rows, length, self._tool_conversation)

    def recall_batch(self, rows: int, length: int) -> Batch:
        """Contexts of `length` tokens with questions about facts planted at all distances."""
        return self._batch(rows, length, lambda: (self._recall_conversation(length), ()))

    def _batch(
        self, rows: int, length: int, make: Callable[[], tuple[list[Message], Sequence[dict[str, Any]]]]
    ) -> Batch:
        ids = np.zeros((rows, length), dtype=np.int64)
        targets = np.zeros((rows, length), dtype=np.bool_)
        for row in range(rows):
            row_ids, row_targets = encode(self.tokenizer, *make())
            size = min(length, len(row_ids))
            ids[row, :size] = row_ids[:size]
            targets[row, :size] = row_targets[:size]
        return Batch(ids, targets)

    def _opening(self) -> list[Message]:
        return [system_message(self.rng)] if self.rng.random() < SYSTEM_SHARE else []

    def _short_sample(self) -> Sample:
        task = self.rng.choices(list(self.task_weights), list(self.task_weights.values()))[0]
        return SHORT_TASKS[task](self.rng, "train")

    def _chain(self, length: int) -> list[Message]:
        """Short tasks until they are at least `length` tokens."""
        messages = self._opening()
        used = 0
        while used < length:
            sample = self._short_sample()
            used += len(encode(self.tokenizer, sample.messages)[0])
            messages += sample.messages
        return messages

    def _tool_conversation(self) -> tuple[list[Message], Sequence[dict[str, Any]]]:
        messages = self._opening()
        cases = tool_cases(self.rng, "train")
        order = self.rng.sample(cases, len(cases))
        for index, case in enumerate(order):
            if self.rng.random() < TOOL_INTERLUDE_SHARE:
                messages += self._short_sample().messages
            is_last = index == len(order) - 1
            messages += case_messages(self.rng, case, with_result=not is_last or self.rng.random() < 0.5)
        return messages, [case.schema for case in cases]

    def _recall_conversation(self, length: int) -> list[Message]:
        dialogue = RecallDialogue(self.rng, length, lambda: self._short_sample().messages)
        return self._opening() + dialogue.build()


def encode(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
) -> tuple[list[int], list[bool]]:
    """Token ids of a rendered conversation, and which of them the model writes itself."""
    ids: list[int] = []
    own: list[bool] = []
    for text, is_own in segments(messages, tools):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        own += [is_own] * len(piece)
    return ids, own

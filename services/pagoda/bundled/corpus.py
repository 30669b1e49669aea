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
from pagoda.bundled.tasks import SHORT_TASKS, Message, Sample, system_message
from pagoda.bundled.tasks.base import assistant, user
from pagoda.bundled.tasks.recall import ACKNOWLEDGED, FACT_TOKENS, FactSource, Note, answer, joined, notes, question
from pagoda.bundled.tasks.tools import case_messages, tool_cases

SYSTEM_SHARE = 0.15
"""Share of conversations that open with a plain system prompt."""

DENSE_SHARE = 0.8
MAX_DENSE_TOKENS = 256
"""Of the contexts up to this length, most hold facts only: choosing among many facts is learned there first."""


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
        """task_weights: relative share of each of SHORT_TASKS; may be changed between batches."""
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
            if self.rng.random() < 0.2:
                messages += self._short_sample().messages
            is_last = index == len(order) - 1
            messages += case_messages(self.rng, case, with_result=not is_last or self.rng.random() < 0.5)
        return messages, [case.schema for case in cases]

    def _recall_conversation(self, length: int) -> list[Message]:
        """Notes first, then questions with more notes between them; each fact is asked for at most once."""
        rng = self.rng
        messages = self._opening()
        source = FactSource(rng, "train")
        planted: list[tuple[int, tuple[str, str]]] = []  # (token position, fact) of the facts not asked for yet
        position = 0
        size = int(length * rng.uniform(0.05, 0.9))
        if is_dense := length <= MAX_DENSE_TOKENS and rng.random() < DENSE_SHARE:
            size = int(length * rng.uniform(0.15, 0.4))
        while position < length:
            text = ""
            if size:
                num_facts = size // FACT_TOKENS if is_dense else 1 + int(size / rng.uniform(12, 150))
                sentences = notes(rng, source, size, num_facts)
                position = self._plant(sentences, position, planted)
                text = joined(sentences)
                if rng.random() < 0.4:
                    messages += [user(text), assistant(ACKNOWLEDGED)]
                    text = ""
            if not planted:
                size = rng.randint(20, 120)
                if text:
                    messages += [user(text), assistant(ACKNOWLEDGED)]
                if len(source) == 0:
                    break
                continue
            wanted = position - rng.random() * position
            choice = min(planted, key=lambda entry: abs(entry[0] - wanted))
            planted.remove(choice)
            fact = choice[1]
            ask = question(rng, fact[0])
            messages += [user(f"{text}\n{ask}" if text else ask), assistant(answer(*fact))]
            position += 27
            if rng.random() < 0.1:
                messages += self._short_sample().messages
                position += 40
            size = rng.randint(20, 120) if rng.random() < 0.15 else 0
        return messages

    def _plant(self, sentences: list[Note], position: int, planted: list[tuple[int, tuple[str, str]]]) -> int:
        """Note where each fact stands; return the position behind the sentences."""
        for note in sentences:
            position += note.num_tokens
            if note.fact is not None:
                planted.append((position, note.fact))
        return position


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

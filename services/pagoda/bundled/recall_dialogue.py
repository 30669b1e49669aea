"""Long training contexts: notes, then many questions about facts planted at all distances.

One question per context would leave a step of two thousand tokens with three digits to learn from; a dialogue asks
for as many facts as fit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pagoda.bundled.tasks import Message
from pagoda.bundled.tasks.base import assistant, user
from pagoda.bundled.tasks.recall import ACKNOWLEDGED, FACT_TOKENS, FactSource, answer, joined, notes, question

DENSE_SHARE = 0.8
MAX_DENSE_TOKENS = 256
"""Of the contexts up to this length, most hold facts only: choosing among many facts is learned there first."""

TURN_TOKENS = 27
"""Tokens of a question with its answer and the chat markup of both."""
INTERLUDE_SHARE = 0.1
INTERLUDE_TOKENS = 40
"""How often another task stands between two questions, and about how long it is."""
MORE_NOTES_SHARE = 0.15
MORE_NOTES_TOKENS = (20, 120)
ACKNOWLEDGED_SHARE = 0.4
"""Share of notes that are a message of their own instead of standing before the next question."""


class RecallDialogue:
    """Builds one context; each fact is asked for at most once, so that only the note holds the answer."""

    def __init__(self, rng: random.Random, length: int, interlude: Callable[[], Sequence[Message]]) -> None:
        """length: tokens to reach; interlude: draws a short exchange about something else."""
        self.rng = rng
        self.length = length
        self.interlude = interlude
        self.is_dense = length <= MAX_DENSE_TOKENS and rng.random() < DENSE_SHARE
        self.source = FactSource(rng, "train")
        self.messages: list[Message] = []
        self.position = 0  # tokens so far, about
        self.open_facts: list[tuple[int, tuple[str, str]]] = []  # (position, fact) of those not asked for yet

    def build(self) -> list[Message]:
        """The messages, of at least `length` tokens unless the names run out."""
        share = self.rng.uniform(0.15, 0.4) if self.is_dense else self.rng.uniform(0.05, 0.9)
        text = self._plant(int(self.length * share))
        while self.position < self.length and (self.open_facts or len(self.source)):
            if not self.open_facts or self.rng.random() < MORE_NOTES_SHARE:
                text = f"{text} {self._plant(self.rng.randint(*MORE_NOTES_TOKENS))}".strip()
            if text and self.rng.random() < ACKNOWLEDGED_SHARE:
                self.messages += [user(text), assistant(ACKNOWLEDGED)]
                text = ""
            if self.open_facts:
                self._ask(text)
                text = ""
            if self.rng.random() < INTERLUDE_SHARE:
                self.messages += self.interlude()
                self.position += INTERLUDE_TOKENS
        return self.messages

    def _plant(self, num_tokens: int) -> str:
        """Notes of about `num_tokens` tokens; their facts become open."""
        num_facts = num_tokens // FACT_TOKENS if self.is_dense else 1 + int(num_tokens / self.rng.uniform(12, 150))
        sentences = notes(self.rng, self.source, num_tokens, num_facts)
        for note in sentences:
            self.position += note.num_tokens
            if note.fact is not None:
                self.open_facts.append((self.position, note.fact))
        return joined(sentences)

    def _ask(self, text: str) -> None:
        """Ask, behind the notes `text`, for the open fact that is nearest to a uniformly drawn position."""
        wanted = self.rng.uniform(0, self.position)
        chosen = min(self.open_facts, key=lambda entry: abs(entry[0] - wanted))
        self.open_facts.remove(chosen)
        _, fact = chosen
        ask = question(self.rng, fact[0])
        self.messages += [user(f"{text}\n{ask}" if text else ask), assistant(answer(*fact))]
        self.position += TURN_TOKENS

"""Recalling a value planted far back in the context.

A context is filler sentences with facts among them ("The code of Mara is 471."), every name at most once, and each
fact is asked for at most once, so the planted sentence is the only source of the answer. A server that reads a wrong
KV block therefore answers wrongly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from pagoda.bundled.tasks.base import Message, Sample, Split, assistant, belongs_to, user
from pagoda.bundled.tasks.words import ADJECTIVES, NAMES, NOUNS, PLACES, VERBS

CountTokens = Callable[[str], int]

QUESTIONS = ("What is the code of {}?", "Tell me the code of {}.", "Which code does {} have?")
FACT = "The code of {} is {}."
ACKNOWLEDGED = "I will remember that."
TURN_OVERHEAD_TOKENS = 8
"""Chat markup of one message, about."""


@dataclass
class FactSource:
    """Draws facts with distinct names; the (name, code) pairs of the two splits are disjoint."""

    rng: random.Random
    split: Split

    def __post_init__(self) -> None:
        self._names = self.rng.sample(NAMES, len(NAMES))

    def __len__(self) -> int:
        return len(self._names)

    def draw(self) -> tuple[str, str]:
        """A new name and its code. The digits of a code differ, so the digits seen so far locate the next one."""
        name = self._names.pop()
        while True:
            code = "".join(self.rng.sample("0123456789", 3))
            if belongs_to(f"{name}={code}", self.split):
                return name, code


def filler_sentence(rng: random.Random) -> str:
    """A sentence that holds no fact."""
    subject, thing = rng.sample(NOUNS, 2)
    return (
        f"The {rng.choice(ADJECTIVES)} {subject} {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} {thing} "
        f"{rng.choice(PLACES)}."
    )


def question(rng: random.Random, name: str) -> str:
    return rng.choice(QUESTIONS).format(name)


def answer(name: str, code: str) -> str:
    """The answer repeats the name, which is what an induction head looks up."""
    return FACT.format(name, code)


def recall(
    rng: random.Random,
    split: Split,
    distance: int,
    count_tokens: CountTokens,
    max_tokens: int = 1900,
) -> Sample:
    """One fact planted about `distance` tokens before its question, other facts around it.

    The text before the planted fact is of random length, within a total of `max_tokens`.
    """
    source = FactSource(rng, split)
    name, code = source.draw()
    before = rng.randint(0, max(0, min(400, max_tokens - distance - 60)))
    head = notes(rng, source, before, count_tokens, num_facts=before // 100 + rng.randint(0, 2))
    tail_tokens = max(0, distance - 2 * TURN_OVERHEAD_TOKENS)
    tail = notes(rng, source, tail_tokens, count_tokens, num_facts=min(12, tail_tokens // 60 + rng.randint(0, 2)))
    text = " ".join([*head, FACT.format(name, code), *tail])
    ask = question(rng, name)
    if rng.random() < 0.5:
        messages: tuple[Message, ...] = (user(f"{text}\n{ask}"),)
    else:
        messages = (user(text), assistant(ACKNOWLEDGED), user(ask))
    return Sample("recall", (*messages, assistant(answer(name, code))), distance=distance)


def notes(
    rng: random.Random, source: FactSource, num_tokens: int, count_tokens: CountTokens, num_facts: int
) -> list[str]:
    """About `num_tokens` tokens of sentences, with up to `num_facts` facts at random places."""
    sentences = [FACT.format(*source.draw()) for _ in range(min(num_facts, len(source), num_tokens // 12))]
    used = sum(count_tokens(" " + sentence) for sentence in sentences)
    while used < num_tokens:
        sentence = filler_sentence(rng)
        used += count_tokens(" " + sentence)
        sentences.insert(rng.randint(0, len(sentences)), sentence)
    return sentences

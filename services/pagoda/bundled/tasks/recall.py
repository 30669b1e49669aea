"""Recalling a value planted far back in the context.

A context is filler sentences with facts among them ("The code of Mara is 471."), every name at most once, and each
fact is asked for at most once, so the planted sentence is the only source of the answer. A server that reads a wrong
KV block therefore answers wrongly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pagoda.bundled.tasks.base import Sample, Split, assistant, belongs_to, user
from pagoda.bundled.tasks.words import ADJECTIVES, NAMES, NOUNS, PLACES, VERBS

QUESTIONS = ("What is the code of {}?", "Tell me the code of {}.", "Which code does {} have?")
FACT = "The code of {} is {}."
ACKNOWLEDGED = "I will remember that."
QUESTION_TOKENS = 27
"""From the end of the notes to the answer's value, less the fact itself: question, chat markup, start of the answer."""
ACKNOWLEDGEMENT_TOKENS = 17
"""What an acknowledged message adds: the answer and the chat markup around it."""
FACT_TOKENS = 10
"""Tokens of one stated fact in the bundled vocabulary: every word is one, every digit and the space before them too."""


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


@dataclass(frozen=True)
class Note:
    """A sentence of a context, with the (name, code) it states if it states one."""

    text: str
    fact: tuple[str, str] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the sentence: its words and its full stop are one each, a code's digits and their space too."""
        return FACT_TOKENS if self.fact else len(self.text.split()) + 1


def notes(rng: random.Random, source: FactSource, num_tokens: int, num_facts: int) -> list[Note]:
    """About `num_tokens` tokens of sentences, with up to `num_facts` facts at random places."""
    num_facts = min(num_facts, len(source), num_tokens // FACT_TOKENS)
    sentences = []
    used = num_facts * FACT_TOKENS
    while used < num_tokens:
        sentences.append(Note(filler_sentence(rng)))
        used += sentences[-1].num_tokens
    for _ in range(num_facts):
        sentences.insert(rng.randint(0, len(sentences)), state(source.draw()))
    return sentences


def state(fact: tuple[str, str]) -> Note:
    return Note(FACT.format(*fact), fact)


def joined(sentences: list[Note]) -> str:
    return " ".join(note.text for note in sentences)


def recall(rng: random.Random, split: Split, distance: int, max_tokens: int = 1900) -> Sample:
    """One fact whose value stands about `distance` tokens before the answer's; other facts around it.

    The text before the planted fact is of random length, within a total of `max_tokens`.
    """
    source = FactSource(rng, split)
    fact = source.draw()
    is_acknowledged = rng.random() < 0.5
    before = rng.randint(0, max(0, min(400, max_tokens - distance - 60)))
    after = max(0, distance - QUESTION_TOKENS - (ACKNOWLEDGEMENT_TOKENS if is_acknowledged else 0))
    head = notes(rng, source, before, num_facts=before // 100 + rng.randint(0, 2))
    tail = notes(rng, source, after, num_facts=min(12, after // 60 + rng.randint(0, 2)))
    text = joined([*head, state(fact), *tail])
    ask = question(rng, fact[0])
    messages = (user(text), assistant(ACKNOWLEDGED), user(ask)) if is_acknowledged else (user(f"{text}\n{ask}"),)
    return Sample("recall", (*messages, assistant(answer(*fact))), distance=distance)

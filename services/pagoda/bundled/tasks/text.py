"""Copying, reversing, sorting and counting: answers that are a function of the request's own words."""

from __future__ import annotations

import random
import string

from pagoda.bundled.tasks.base import Sample, Split, assistant, draw, user
from pagoda.bundled.tasks.words import NAMES, NOUNS, SYMBOLS

_COPY = (
    "Repeat after me: {}",
    "Copy this text: {}",
    "Say this back to me: {}",
    "Repeat this: {}",
    "Please copy: {}",
)
_REVERSE = ("Reverse these words: {}", "Write these words backwards: {}")
_SORT = ("Sort these words: {}", "Put these words in alphabetical order: {}")
_COUNT = ("Count from {} to {}.", "Please count from {} to {}.")

MAX_COPY_WORDS = 20
MAX_COUNT = 30


def copy(rng: random.Random, split: Split) -> Sample:
    """Repeat words or random strings exactly."""
    text = draw(rng, split, _copy_text, str)
    return Sample("copy", (user(rng.choice(_COPY).format(text)), assistant(text)))


def _copy_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return " ".join(rng.choices(NOUNS + NAMES, k=rng.randint(1, MAX_COPY_WORDS)))
    if kind < 0.85:
        alphabet = string.ascii_lowercase + string.digits
        return " ".join("".join(rng.choices(alphabet, k=rng.randint(2, 6))) for _ in range(rng.randint(1, 4)))
    return " ".join(rng.choices(NOUNS + SYMBOLS * 4, k=rng.randint(2, 8)))


def _words(rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.sample(NOUNS, rng.randint(2, 6)))


def reverse(rng: random.Random, split: Split) -> Sample:
    """List the words in reverse order."""
    words = draw(rng, split, _words, ", ".join)
    question = rng.choice(_REVERSE).format(", ".join(words))
    return Sample("reverse", (user(question), assistant(", ".join(reversed(words)))))


def sort(rng: random.Random, split: Split) -> Sample:
    """List the words in alphabetical order. Held out are sets of words, in whichever order they come."""
    words = draw(rng, split, _words, lambda words: " ".join(sorted(words)))
    question = rng.choice(_SORT).format(", ".join(words))
    return Sample("sort", (user(question), assistant(", ".join(sorted(words)))))


def count(rng: random.Random, split: Split) -> Sample:
    """Count upwards by one: the longest answers of the short tasks."""
    first, last = draw(rng, split, _range, str)
    question = rng.choice(_COUNT).format(first, last)
    return Sample("count", (user(question), assistant(", ".join(map(str, range(first, last + 1))))))


def _range(rng: random.Random) -> tuple[int, int]:
    first = rng.randint(1, MAX_COUNT - 5)
    return first, rng.randint(first + 2, MAX_COUNT)

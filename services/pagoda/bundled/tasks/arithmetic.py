"""Adding two numbers below one hundred."""

from __future__ import annotations

import random

from pagoda.bundled.tasks.base import Sample, Split, assistant, draw, user

_QUESTIONS = (
    "What is {} + {}?",
    "{} + {} = ?",
    "Add {} and {}.",
    "How much is {} plus {}?",
)


def addition(rng: random.Random, split: Split) -> Sample:
    """Add two numbers of two digits each. A held-out pair is held out in both orders."""
    a, b = draw(rng, split, _pair, pair_key)
    question = rng.choice(_QUESTIONS).format(a, b)
    return Sample("addition", (user(question), assistant(f"{a} + {b} = {a + b}")))


def _pair(rng: random.Random) -> tuple[int, int]:
    return rng.randint(10, 99), rng.randint(10, 99)


def pair_key(pair: tuple[int, int]) -> str:
    """What the hold-out hashes: the unordered pair, since a + b gives away b + a."""
    return "{}+{}".format(*sorted(pair))

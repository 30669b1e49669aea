"""Adding two numbers below one hundred."""

from __future__ import annotations

import random

from pagoda.bundled.tasks.base import Check, Sample, Split, assistant, draw, user

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
    return Sample("addition", (user(question), assistant(worked_sum(a, b))), Check.LAST_NUMBER)


def worked_sum(a: int, b: int) -> str:
    """The sum place by place: "7 + 5 = 12, 4 + 8 + 1 = 13, so 132".

    Written out, every digit follows from a few others; the bare sum asks for the carry before the digit it comes from,
    which so small a model does not learn in the time it has.
    """
    (a_tens, a_ones), (b_tens, b_ones) = divmod(a, 10), divmod(b, 10)
    ones = a_ones + b_ones
    carry = ones // 10
    return f"{a_ones} + {b_ones} = {ones}, {a_tens} + {b_tens} + {carry} = {a_tens + b_tens + carry}, so {a + b}"


def _pair(rng: random.Random) -> tuple[int, int]:
    return rng.randint(10, 99), rng.randint(10, 99)


def pair_key(pair: tuple[int, int]) -> str:
    """What the hold-out hashes: the unordered pair, since a + b gives away b + a."""
    return "{}+{}".format(*sorted(pair))

"""Extracting the facts of a sentence as a JSON object."""

from __future__ import annotations

import json
import random

from pagoda.bundled.tasks.base import Check, Sample, Split, assistant, draw, user
from pagoda.bundled.tasks.words import CITIES, ITEMS, NAMES

# (keys, sentences): every sentence of an entry mentions all of its keys.
_FORMS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("name", "age", "city"),
        (
            "{name} is {age} years old and lives in {city}.",
            "{name} lives in {city} and is {age} years old.",
            "In {city} lives {name}, who is {age} years old.",
        ),
    ),
    (
        ("name", "count", "item"),
        (
            "{name} bought {count} {item}.",
            "{count} {item} were sold to {name}.",
        ),
    ),
    (
        ("item", "count", "price"),
        (
            "The order is {count} {item} for {price} dollars.",
            "For {price} dollars we sell {count} {item}.",
        ),
    ),
    (
        ("name", "city"),
        (
            "{name} moved to {city}.",
            "{city} is where {name} works.",
        ),
    ),
)
_REQUESTS = (
    "Extract {keys} as JSON: {sentence}",
    "Return {keys} as JSON. {sentence}",
    "{sentence} Give me {keys} as JSON.",
)


def extract(rng: random.Random, split: Split) -> Sample:
    """Read a sentence into `{"key": value, ...}`, with the keys in the order asked for."""
    keys, sentences = rng.choice(_FORMS)
    record = draw(rng, split, lambda rng: _record(rng, keys), lambda record: json.dumps(record, sort_keys=True))
    request = rng.choice(_REQUESTS).format(keys=_listed(keys), sentence=rng.choice(sentences).format(**record))
    return Sample("json", (user(request), assistant(json.dumps(record))), Check.JSON)


def _record(rng: random.Random, keys: tuple[str, ...]) -> dict[str, str | int]:
    values: dict[str, str | int] = {
        "name": rng.choice(NAMES),
        "age": rng.randint(10, 99),
        "city": rng.choice(CITIES),
        "count": rng.randint(2, 99),
        "item": rng.choice(ITEMS),
        "price": rng.randint(2, 999),
    }
    return {key: values[key] for key in keys}


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:-1]) + " and " + keys[-1]

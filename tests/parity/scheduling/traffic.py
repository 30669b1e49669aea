"""Requests of many kinds, what each of them gets alone, and how they come to a cell."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from real_cell import RealCell, Served, Shape
from torch import Tensor

from pagoda.bundled.tasks.recall import FactSource, joined, notes
from pagoda.scheduler.core.request import End, FinishReason, Request, RequestKey, Sampling
from pagoda.text.tokenizer import TextTokenizer

MAX_MODEL_LEN = 128

Text = Callable[[int, int], list[int]]
"""(which text, how many tokens) -> its first tokens."""

# Room for all of the longest request, and for every prompt in one step.
_ALONE = Shape(max_num_seqs=1, max_num_batched_tokens=MAX_MODEL_LEN, block_size=16, num_blocks=64)

GREEDY: dict[str, Any] = {"temperature": 0.0}
DRAWN: list[dict[str, Any]] = [
    {"temperature": 0.9},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.9, "top_k": 20},
    {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "min_p": 0.01},
]


def random_text(vocab_size: int) -> Text:
    return lambda which, count: random.Random(which).choices(range(vocab_size), k=count)


def notes_text(folder: Path) -> Text:
    """What the bundled model was trained on: notes with facts among them."""
    tokenizer = TextTokenizer.load(folder)

    def text(which: int, count: int) -> list[int]:
        rng = random.Random(which)
        sentences = notes(rng, FactSource(rng, "held_out"), num_tokens=MAX_MODEL_LEN, num_facts=6)
        token_ids = tokenizer.encode(joined(sentences))
        assert len(token_ids) >= count
        return list(token_ids)[:count]

    return text


@dataclass(frozen=True)
class Ask:
    """One request, and when it comes."""

    key: RequestKey
    prompt: list[int]
    sampling: Sampling
    forked_from: RequestKey | None = None
    fork_after: int = 0
    """It comes when the request that it branches off has so many tokens."""
    abort_after: int = 0
    """Its client goes away when it has so many tokens; 0: stays."""
    num_done: int = 0
    """It comes with so many of its tokens, which it got from a scheduler that is gone."""
    cache_salt: bytes = b""

    def request(self, done: list[int]) -> Request:
        return Request(
            self.key,
            self.prompt + done,
            self.sampling,
            num_prompt_tokens=len(self.prompt),
            forked_from=self.forked_from,
            cache_salt=self.cache_salt,
            client_id="abc"[self.key.number % 3],
            priority=self.key.number % 2,
        )


class Outcome(NamedTuple):
    """What a request gets."""

    tokens: list[int]
    end: End
    sampled_from: list[Tensor]
    """Final hidden states, one for each token."""


def alone(served: Served, ask: Ask) -> Outcome:
    """With a scheduler and an executor of its own, and with all of its prompt in one step."""
    cell = RealCell(served, enable_prefix_caching=False, max_plans_in_flight=1)
    cell.join("A", _ALONE)
    cell.submit(ask.request([]))
    cell.finish()
    tokens = cell.tokens[ask.key]
    assert cell.work["steps"] == len(tokens)
    return Outcome(tokens, cell.ends[ask.key], cell.sampled_from[ask.key])


def difference(cell: RealCell, ask: Ask, expected: Outcome, tolerance: float) -> str:
    """How what a request got of `cell` differs from what it should get; empty where it does not."""
    tokens, end, states = cell.tokens[ask.key], cell.ends.get(ask.key), cell.sampled_from[ask.key]
    wanted_tokens, wanted_end, wanted_states = expected
    if ask.abort_after:
        # A few more may be on their way when the client goes.
        wanted_tokens = wanted_tokens[: max(ask.abort_after, len(tokens))]
        wanted_end = End(FinishReason.ABORT)
    if tokens != wanted_tokens:
        return f"request {ask.key.number} got {tokens} instead of {wanted_tokens}"
    if end != wanted_end:
        return f"request {ask.key.number} ended with {end} instead of {wanted_end}"
    distance = (torch.stack(states) - torch.stack(wanted_states[ask.num_done : len(tokens)])).abs().max().item()
    # NaN is no distance, and not within any.
    return "" if distance <= tolerance else f"states of request {ask.key.number} differ by up to {distance}"


class Traffic:
    """The same requests for every cell. Some need tokens of others, so they are made one after the other, alone."""

    def __init__(self, served: Served, text: Text) -> None:
        self.served = served
        self.asks: list[Ask] = []
        self.expected: dict[RequestKey, Outcome] = {}
        # Some of these soon come up in whatever is generated.
        self._stop_ids = frozenset(range(3, served.vocab_size, 6))

        for which, length in enumerate([1, 2, 7, 15, 16, 17, 33, 64, 96]):
            self._add(text(which, length), stops=which % 3 == 2, **DRAWN[which % 4])
        shared = text(20, 70)
        for which, (length, own) in enumerate([(40, 5), (64, 9), (70, 20), (32, 30)]):
            self._add(shared[:length] + text(30 + which, own), stops=which % 2 == 0, **DRAWN[which])
        # The same once more; with another seed; and of somebody else, who may share nothing.
        first = self._add(shared, seed=5, **DRAWN[0])
        self._add(shared, seed=5, **DRAWN[0])
        self._add(shared, seed=6, **DRAWN[0])
        self._add(shared, seed=6, cache_salt=b"theirs", **DRAWN[0])
        greedy = self._add(shared[:45], **GREEDY)
        self._add(shared[:45], **GREEDY)
        self._add(text(40, 60), abort_after=6, **DRAWN[1])
        self._add(shared + text(41, 10), abort_after=1, **DRAWN[2])
        self._add(text(42, 30), num_done=5, **DRAWN[3])

        trunk = self._add(text(50, 37), max_tokens=28, **DRAWN[0])
        branch = self._fork(trunk, 5, max_tokens=20, **DRAWN[1])
        self._fork(trunk, 5, stops=True, **GREEDY)
        self._fork(trunk, 13, [3], **DRAWN[2])
        self._fork(branch, 7, **DRAWN[3])
        self._fork(first, 2, [1, 2, 3], **DRAWN[0])
        self._fork(greedy, 4, **DRAWN[1])
        reasons = [outcome.end.reason for outcome in self.expected.values()]
        assert min(reasons.count(FinishReason.STOP), reasons.count(FinishReason.LENGTH)) >= 2

    def run(self, cell: RealCell, *, seed: int, meanwhile: Callable[[int], object] = lambda turn: None) -> None:
        """Everything comes to `cell`, at times that depend on `seed`, and ends.

        meanwhile: called before each turn, with its number
        """
        rng = random.Random(seed)
        due = {ask.key: rng.randrange(20) for ask in self.asks}
        to_come = rng.sample(self.asks, len(self.asks))
        turn = 0
        while to_come or cell.core.requests:
            for ask in [ask for ask in to_come if self._is_due(ask, cell, due[ask.key] <= turn)]:
                to_come.remove(ask)
                cell.submit(ask.request(self.expected[ask.key].tokens[: ask.num_done]))
            meanwhile(turn)
            cell.turn(waits=lambda: rng.random() < 0.7)
            for ask in self.asks:
                if ask.abort_after and len(cell.tokens.get(ask.key, ())) >= ask.abort_after:
                    cell.abort(ask.key)
            turn += 1
            assert turn < 10_000, "requests do not come to an end"
        cell.finish()

    def differences(self, cell: RealCell) -> list[str]:
        """Between what requests got of `cell` and what they get alone."""
        found = [difference(cell, ask, self.expected[ask.key], self.served.tolerance) for ask in self.asks]
        return [each for each in found if each]

    def _add(
        self,
        prompt: list[int],
        *,
        seed: int | None = None,
        max_tokens: int | None = None,
        stops: bool = False,
        forked_from: RequestKey | None = None,
        fork_after: int = 0,
        abort_after: int = 0,
        num_done: int = 0,
        cache_salt: bytes = b"",
        **sampling: Any,
    ) -> RequestKey:
        key = RequestKey("t", len(self.asks))
        ask = Ask(
            key,
            prompt,
            Sampling(
                seed=key.number if seed is None else seed,
                max_tokens=9 + 5 * key.number % 13 if max_tokens is None else max_tokens,
                stop_token_ids=self._stop_ids if stops else frozenset(),
                ignore_eos=not stops,
                **sampling,
            ),
            forked_from,
            fork_after,
            abort_after,
            num_done,
            cache_salt,
        )
        self.asks.append(ask)
        self.expected[key] = alone(self.served, ask)
        return key

    def _fork(self, parent: RequestKey, after: int, own: list[int] | None = None, **others: Any) -> RequestKey:
        """Branches off `parent` behind its first `after` tokens, perhaps with tokens of its own."""
        tokens = self.expected[parent].tokens
        # Even if it is two steps ahead, it has not ended by then.
        assert len(tokens) > after + 2
        prompt = self.asks[parent.number].prompt + tokens[:after] + (own or [])
        return self._add(prompt, forked_from=parent, fork_after=after, **others)

    def _is_due(self, ask: Ask, cell: RealCell, is_time: bool) -> bool:
        if ask.forked_from is None:
            return is_time
        return len(cell.tokens.get(ask.forked_from, ())) >= ask.fork_after

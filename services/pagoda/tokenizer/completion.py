"""One completion on its way from tokens to text: detokenized, and cut at its stop token or stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text import IncrementalDetokenizer, StopStringMatcher, TextTokenizer
from pagoda.tokenizer.token_stream import Arrival
from pagoda.v1.common_pb2 import FinishReason
from pagoda.v1.step_pb2 import FinishedRequest

# Tokens of the prompt that decide how the first token joins it.
_PROMPT_TAIL_TOKENS = 8


@dataclass(frozen=True, slots=True)
class End:
    """How a completion ended.

    stopped_by: the stop string, or the id of the stop token, that ended it; None for any other end
    """

    reason: FinishReason
    stopped_by: str | int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a completion got since its last delta.

    index: which completion of the request
    text: whole characters; without the stop token's text
    token_ids: with the stop token
    end: set on the last delta
    """

    index: int
    text: str
    token_ids: list[int]
    end: End | None


class Completion:
    """One completion's text so far, as deltas.

    prompt: its token ids
    min_tokens: stop strings are not looked for in the text of the first `min_tokens` tokens
    """

    __slots__ = (
        "_detokenizer",
        "_include_stop",
        "_matcher",
        "_min_tokens",
        "end",
        "first_token_at",
        "last_token_at",
        "num_cached_tokens",
        "num_prompt_tokens",
        "num_tokens",
    )

    def __init__(
        self,
        prompt: Sequence[int],
        tokenizer: TextTokenizer,
        *,
        stop: Sequence[str],
        include_stop: bool,
        skip_special_tokens: bool,
        min_tokens: int,
    ) -> None:
        self.num_prompt_tokens = len(prompt)
        # None until the scheduler tells it, which it does when the request starts.
        self.num_cached_tokens: int | None = None
        self.num_tokens = 0
        # When tokens came, on the clock of `time.perf_counter`; 0 before the first. Kept by `RequestTimes`.
        self.first_token_at = 0.0
        self.last_token_at = 0.0
        self.end: End | None = None
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, skip_special_tokens=skip_special_tokens, prompt_tail=prompt[-_PROMPT_TAIL_TOKENS:]
        )
        self._matcher = StopStringMatcher(stop, include_stop) if stop else None
        self._include_stop = include_stop
        self._min_tokens = min_tokens

    def take(self, arrival: Arrival) -> Delta:
        """The text of new tokens. A stop string may end the completion before the scheduler does."""
        token_ids, finished = arrival.token_ids, arrival.finished
        self.num_cached_tokens = arrival.num_cached_tokens
        shown = token_ids
        if finished is not None and finished.HasField("stop_token_id") and not self._include_stop:
            shown = token_ids[:-1]
        if self._matcher is None:
            text = self._detokenizer.push(shown)
        else:
            text, num_shown = self._push_until_stop(shown, self._matcher)
            if self._matcher.matched is not None:
                return self._delta(arrival.index, text, token_ids[:num_shown], self._matched(self._matcher))
        if finished is None:
            return self._delta(arrival.index, text, token_ids, None)
        text += self._finish()
        return self._delta(arrival.index, text, token_ids, self._end_of(finished))

    def _push_until_stop(self, token_ids: list[int], matcher: StopStringMatcher) -> tuple[str, int]:
        """(text to show, how many of the tokens it took): token by token, so that no token counts after the end."""
        pieces = []
        for position, token_id in enumerate(token_ids):
            text = self._detokenizer.push([token_id])
            if self.num_tokens + position < self._min_tokens:
                pieces.append(text)
                continue
            pieces.append(matcher.push(text))
            if matcher.matched is not None:
                return "".join(pieces), position + 1
        return "".join(pieces), len(token_ids)

    def _finish(self) -> str:
        """The text that was still held back."""
        text = self._detokenizer.finish()
        return text if self._matcher is None else self._matcher.push(text) + self._matcher.flush()

    def _end_of(self, finished: FinishedRequest) -> End:
        if self._matcher is not None and self._matcher.matched is not None:
            return self._matched(self._matcher)
        return End(finished.reason, finished.stop_token_id if finished.HasField("stop_token_id") else None)

    @staticmethod
    def _matched(matcher: StopStringMatcher) -> End:
        return End(FinishReason.FINISH_REASON_STOP, matcher.matched)

    def _delta(self, index: int, text: str, token_ids: list[int], end: End | None) -> Delta:
        self.num_tokens += len(token_ids)
        self.end = end
        return Delta(index, text, token_ids, end)

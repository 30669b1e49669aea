"""Stop strings: the answer must not depend on how the text arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.errors import InvalidArgumentError
from pagoda.text import StopStringMatcher


def run(pieces: list[str], stop: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    matcher = StopStringMatcher(stop, include_stop)
    text = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    return text, matcher.matched


def search(text: str, stop: list[str], include_stop: bool) -> tuple[str, str | None]:
    """The same by its definition: the first stop string to be complete, and of several the first listed."""
    for end in range(1, len(text) + 1):
        for candidate in stop:
            if text[:end].endswith(candidate):
                return text[: end if include_stop else end - len(candidate)], candidate
    return text, None


def test_cuts_before_a_stop_string_split_over_pushes() -> None:
    assert run(["one\nOb", "serva", "tion: two"], ["Observation:"]) == ("one\n", "Observation:")


def test_keeps_the_stop_string_on_request() -> None:
    assert run(["one. two"], ["."], include_stop=True) == ("one.", ".")


def test_holds_back_only_what_may_begin_a_stop_string() -> None:
    matcher = StopStringMatcher(["</answer>", "\n\n"])
    assert matcher.push("x </") == "x "
    assert matcher.push("b>") == "</b>"
    assert matcher.push("\n") == ""
    assert matcher.push("y") == "\ny"
    assert matcher.push("</answer") == ""
    assert matcher.flush() == "</answer"
    assert matcher.flush() == ""


def test_holds_nothing_back_when_the_stop_string_is_kept() -> None:
    matcher = StopStringMatcher(["</answer>"], include_stop=True)
    assert matcher.push("x </ans") == "x </ans"
    assert matcher.push("wer>y") == "wer>"


def test_emits_nothing_after_a_match() -> None:
    matcher = StopStringMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert matcher.push("c") == ""
    assert matcher.flush() == ""
    assert matcher.matched == "."


def test_the_stop_string_that_completes_first_wins() -> None:
    # "abcd" begins first, but "c" is complete first.
    assert run(["xabcd"], ["abcd", "c"]) == ("xab", "c")


@pytest.mark.parametrize(("stop", "expected"), [(["b", "ab"], ("xa", "b")), (["ab", "b"], ("x", "ab"))])
def test_of_those_that_complete_together_the_first_listed_wins(stop: list[str], expected: tuple[str, str]) -> None:
    assert run(["xab"], stop) == expected


def test_overlapping_beginnings_are_found() -> None:
    assert run(list("ababac"), ["abac"]) == ("ab", "abac")


def test_without_stop_strings_everything_passes() -> None:
    assert run(["a", "b"], []) == ("ab", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        StopStringMatcher(["a", ""])
    assert raised.value.param == "stop"


# A small alphabet makes overlaps and near misses common.
words = st.text(alphabet="ab\n", max_size=5)


@given(st.lists(words), st.lists(words.filter(bool), max_size=4), st.booleans())
def test_chunking_never_changes_the_result(pieces: list[str], stop: list[str], include_stop: bool) -> None:
    assert run(pieces, stop, include_stop) == search("".join(pieces), stop, include_stop)


@given(st.lists(words), st.lists(words.filter(bool), min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_begin_a_stop_string(pieces: list[str], stop: list[str]) -> None:
    matcher = StopStringMatcher(stop)
    seen = emitted = ""
    for piece in pieces:
        seen += piece
        emitted += matcher.push(piece)
        if matcher.matched is not None:
            return
        beginnings = {text[:length] for text in stop for length in range(len(text))}
        longest = max(len(text) for text in beginnings if seen.endswith(text))
        assert emitted == seen[: len(seen) - longest]

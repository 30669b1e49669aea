"""Streaming must give the text of the whole, promptly, at constant cost, and never half a character.

The reference is `tokenizers`' own decode. It is not the reference in one case, which `decode` documents: runs of
byte-fallback tokens that are ill-formed after a complete character.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pagoda.errors import InvalidArgumentError
from pagoda.text import IncrementalDetokenizer, TextTokenizer
from pagoda.text.token_bytes import TokenBytes

TABULATED = ["byte_level", "byte_fallback", "metaspace", "word_piece", "no_decoder"]
FAMILIES = [*TABULATED, "word_suffix"]

TEXTS = [
    "the dog and the dog",
    " the leading space",
    "你好世界",
    "family: 👨‍👩‍👧‍👦, flag: 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "combining: e\u0301 a\u0323\u0302 뻐ᄈ\u1165",
    "zero\x00byte and \ufffd itself",
    "it's  two  spaces .\n\n\ttab",
    "",
]

# The fixtures are read-only, so hypothesis may use them again for each example.
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
id_seeds = st.lists(st.integers(0, 2**16), max_size=24)
cuts = st.lists(st.integers(0, 24), max_size=4)
# What models write: words, scripts of all UTF-8 lengths, joiners and marks, spaces.
texts = st.text(
    alphabet=st.one_of(st.sampled_from("aedogth .,'é你好👩👧\u200d\ufe0f\u0301▁\n"), st.characters(codec="utf-8")),
    max_size=20,
)


def pieces_of(ids: Sequence[int], positions: list[int]) -> list[Sequence[int]]:
    bounds = [0, *sorted(min(position, len(ids)) for position in positions), len(ids)]
    return [ids[start:end] for start, end in pairwise(bounds)]


def stream(
    tokenizer: TextTokenizer,
    pieces: Sequence[Sequence[int]],
    *,
    skip_special_tokens: bool = True,
    prompt_tail: Sequence[int] = (),
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens, prompt_tail=prompt_tail)
    return [*(detokenizer.push(piece) for piece in pieces), detokenizer.finish()]


def one_by_one(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[str]:
    return stream(tokenizer, [[token_id] for token_id in ids])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_texts(family: str, text: str, loaded: dict[str, TextTokenizer], backends: dict[str, Tokenizer]) -> None:
    ids = loaded[family].encode(text)
    expected = backends[family].decode(ids, skip_special_tokens=True)
    assert "".join(one_by_one(loaded[family], ids)) == expected
    assert loaded[family].decode(ids) == expected


@pytest.mark.parametrize("family", FAMILIES)
@relaxed
@given(text=texts, positions=cuts, skip=st.booleans())
def test_any_text_in_any_pieces(
    family: str,
    text: str,
    positions: list[int],
    skip: bool,
    loaded: dict[str, TextTokenizer],
    backends: dict[str, Tokenizer],
) -> None:
    ids = loaded[family].encode(text)
    streamed = stream(loaded[family], pieces_of(ids, positions), skip_special_tokens=skip)
    assert "".join(streamed) == backends[family].decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", FAMILIES)
@relaxed
@given(seeds=id_seeds, positions=cuts, skip=st.booleans())
def test_any_ids_in_any_pieces(
    family: str,
    seeds: list[int],
    positions: list[int],
    skip: bool,
    loaded: dict[str, TextTokenizer],
    backends: dict[str, Tokenizer],
) -> None:
    tokenizer = loaded[family]
    ids = [seed % (tokenizer.max_token_id + 1) for seed in seeds]
    text = "".join(stream(tokenizer, pieces_of(ids, positions), skip_special_tokens=skip))
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)
    if family == "byte_fallback":
        kept = [token_id for token_id in ids if not (skip and token_id in tokenizer.special_token_ids)]
        if _has_mixed_run(tokenizer.token_strings(kept)):
            return
    assert text == backends[family].decode(ids, skip_special_tokens=skip)


def _has_mixed_run(tokens: list[str]) -> bool:
    """True if a run of byte tokens holds both complete characters and ill-formed bytes."""
    run = b""
    for token in [*tokens, ""]:
        if token.startswith("<0x"):
            run += bytes.fromhex(token[3:5])
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            if run.decode(errors="ignore"):
                return True
        run = b""
    return False


@pytest.mark.parametrize("family", FAMILIES)
@relaxed
@given(seeds=id_seeds, tail_seeds=id_seeds.filter(bool))
def test_behind_a_prompt_it_is_what_the_ids_add(
    family: str, seeds: list[int], tail_seeds: list[int], loaded: dict[str, TextTokenizer]
) -> None:
    tokenizer = loaded[family]
    ids = [seed % (tokenizer.max_token_id + 1) for seed in seeds]
    # A prompt is a text: it ends with a whole character.
    tail = [*(seed % (tokenizer.max_token_id + 1) for seed in tail_seeds), tokenizer.encode("the")[-1]]
    before = tokenizer.decode(tail, skip_special_tokens=False)
    whole = tokenizer.decode(tail + ids, skip_special_tokens=False)
    streamed = stream(tokenizer, [ids], skip_special_tokens=False, prompt_tail=tail)
    assert "".join(streamed) == whole[len(before) :]


@pytest.mark.parametrize("family", ["byte_fallback", "metaspace"])
def test_a_continuation_keeps_its_leading_space(family: str, loaded: dict[str, TextTokenizer]) -> None:
    tokenizer = loaded[family]
    dog = tokenizer.encode("dog", add_special_tokens=False)
    special = [min(tokenizer.special_token_ids)]
    assert "".join(stream(tokenizer, [dog])) == "dog"
    assert "".join(stream(tokenizer, [dog], prompt_tail=special)) == "dog"
    assert "".join(stream(tokenizer, [dog], prompt_tail=[*dog, *special])) == " dog"


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback"])
def test_a_character_is_emitted_whole_with_its_last_byte(family: str, loaded: dict[str, TextTokenizer]) -> None:
    ids = loaded[family].encode("👩", add_special_tokens=False)[-4:]
    assert one_by_one(loaded[family], ids) == ["", "", "", "👩", ""]


@pytest.mark.parametrize(("family", "expected"), [("byte_level", "\ufffd"), ("byte_fallback", "\ufffd" * 3)])
def test_an_unfinished_character_comes_out_at_the_end(
    family: str, expected: str, loaded: dict[str, TextTokenizer]
) -> None:
    ids = loaded[family].encode("👩", add_special_tokens=False)[-4:-1]
    assert one_by_one(loaded[family], ids) == ["", "", "", expected]


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback"])
def test_ill_formed_bytes_are_replaced_as_soon_as_they_are_known(family: str, loaded: dict[str, TextTokenizer]) -> None:
    lead, *_ = loaded[family].encode("👩", add_special_tokens=False)[-4:]
    # A lead byte after a lead byte makes the one before ill-formed, and only that.
    assert one_by_one(loaded[family], [lead] * 4) == ["", "\ufffd", "\ufffd", "\ufffd", "\ufffd"]


def test_characters_before_ill_formed_bytes_are_kept(
    loaded: dict[str, TextTokenizer], backends: dict[str, Tokenizer]
) -> None:
    tokenizer = loaded["byte_fallback"]
    ids = tokenizer.encode("👩", add_special_tokens=False)[-4:]
    ids += ids[:1]
    assert "".join(one_by_one(tokenizer, ids)) == tokenizer.decode(ids) == "👩\ufffd"
    assert backends["byte_fallback"].decode(ids) == "\ufffd" * 5


@pytest.mark.parametrize("family", TABULATED)
def test_ids_of_the_padding_add_nothing(family: str, backends: dict[str, Tokenizer]) -> None:
    padded = TextTokenizer(
        backends[family], tokenizer_config={}, special_tokens={}, chat_templates={}, model_vocab_size=1000
    )
    ids = padded.encode("dog", add_special_tokens=False)
    assert "".join(one_by_one(padded, [999, *ids, 999])).strip() == padded.decode(ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bad_id", [-1, 10**6, 2**40])
def test_ids_out_of_range_are_refused(family: str, bad_id: int, loaded: dict[str, TextTokenizer]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"Token id {bad_id} is out of range"):
        IncrementalDetokenizer(loaded[family]).push([bad_id])


@pytest.mark.parametrize("family", TABULATED)
def test_a_token_costs_one_lookup_however_long_the_text(
    family: str,
    loaded: dict[str, TextTokenizer],
    backends: dict[str, Tokenizer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups = 0

    class Counting(TokenBytes):
        def __getitem__(self, token_id: int) -> bytes:
            nonlocal lookups
            lookups += 1
            return super().__getitem__(token_id)

    tokenizer = loaded[family]
    monkeypatch.setattr(tokenizer, "token_bytes", Counting(backends[family], tokenizer.max_token_id))
    monkeypatch.setattr(tokenizer, "decode", None)  # would fail if called
    detokenizer = IncrementalDetokenizer(tokenizer)
    ids = tokenizer.encode("the dog", add_special_tokens=False) * 10_000
    detokenizer.push(ids[:200])
    for position in (200, 19_999):
        lookups = 0
        detokenizer.push([ids[position]])
        assert lookups == 1
        detokenizer.push(ids[201:19_999])


def test_a_window_stays_short_however_long_the_text(
    loaded: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = loaded["word_suffix"]
    ids = tokenizer.encode("the dog") * 2_000
    lengths: list[int] = []
    decode = tokenizer.decode

    def counting(token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        lengths.append(len(token_ids))
        return decode(token_ids, skip_special_tokens)

    monkeypatch.setattr(tokenizer, "decode", counting)
    one_by_one(tokenizer, ids)
    assert max(lengths) <= 10
    assert len(lengths) <= 2 * (len(ids) + 1)

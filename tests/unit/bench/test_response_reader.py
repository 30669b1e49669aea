"""HTTP/1.1 responses, whole and in pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pagoda.bench.serving.response_reader import ProtocolError, ResponseReader

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Two: a\r\n\r\n"
    b"5;name=value\r\nhello\r\n0001\r\n\r\r\na\r\n 5678901\r\n\r\n0\r\nTrailer: x\r\n\r\n"
)
CHUNKED_BODY = b"hello\r 5678901\r\n"
SIZED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\n{..}"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + SIZED
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (CHUNKED, 200, CHUNKED_BODY),
        (SIZED, 429, b"{..}"),
        (INTERIM, 429, b"{..}"),
        (EMPTY, 204, b""),
        (SIZED.replace(b"4\r", b"0\r")[:-4], 429, b""),
    ],
)
def test_every_way_to_cut_it(data: bytes, status: int, body: bytes) -> None:
    cuts = [[0, len(data)], list(range(len(data) + 1)), *([0, at, len(data)] for at in range(1, len(data)))]
    for cut in cuts:
        reader = ResponseReader()
        found = b"".join(reader.feed(data[begin:end]) for begin, end in pairwise(cut))
        assert (reader.status, found) == (status, body)
        assert reader.is_complete
        assert reader.keeps_connection
        reader.end()


def test_chunks_that_come_one_by_one() -> None:
    reader = ResponseReader()
    assert reader.feed(CHUNKED[: CHUNKED.index(b"5;")]) == b""
    for chunk, body in [
        (b"5\r\nhello\r\n", b"hello"),
        (b"00000A\r\n\r\n56789\r\n01\r\n".replace(b"01", b"0"), b"\r\n56789\r\n0"),
        (b"1;x\r\n\n\r\n", b"\n"),
        (b"3\r\nabc\r\n2\r\nde\r\n", b"abcde"),
        (b"3\r\nabc\r\n2\r\nd", b"abcd"),
        (b"e\r\n", b"e"),
        (b"0\r\n\r\n", b""),
    ]:
        assert reader.feed(chunk) == body
    assert reader.is_complete


def test_a_body_without_a_size_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nab") == b"ab"
    assert reader.feed(b"cd") == b"cd"
    assert not reader.is_complete
    reader.end()
    assert reader.is_complete
    assert not reader.keeps_connection


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.1 200\r\n", True),
    ],
)
def test_whether_another_request_may_follow(head: bytes, keeps: bool) -> None:
    reader = ResponseReader()
    assert reader.feed(head + b"content-length: 1\r\n\r\nx") == b"x"
    assert reader.keeps_connection is keeps


@pytest.mark.parametrize("end", [10, len(CHUNKED) - 1, len(CHUNKED) - 20, 70])
def test_an_answer_that_is_cut_short(end: int) -> None:
    reader = ResponseReader()
    reader.feed(CHUNKED[:end])
    with pytest.raises(ProtocolError, match="before the end of its answer"):
        reader.end()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/2 200\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "no number: 'many'"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "no number: '-1'"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", "no number: 'xyz'"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n", "longer than its size"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "does not end"),
    ],
)
def test_what_is_no_response(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        ResponseReader().feed(data)

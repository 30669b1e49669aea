"""HTTP/1.1 responses from the bytes of a connection (RFC 9112), as far as a client of an OpenAI API needs them.

Knows no sockets. Chunked, sized and unsized bodies; interim responses (1xx) are skipped, trailers are dropped.
"""

from __future__ import annotations

from enum import Enum, auto

# A server that sends longer ones is none that we know.
_MAX_LINE = 1 << 16


class ProtocolError(Exception):
    """The server's bytes are no HTTP/1.1 response, or they end too early."""


class _State(Enum):
    HEAD = auto()
    SIZED = auto()
    UNTIL_END = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    COMPLETE = auto()


class ResponseReader:
    """One response; a new one is needed for the next.

    status: 0 until the head has been read
    headers: by lower-case name; of those sent twice, the last
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._state = _State.HEAD
        self._buffer = b""
        # Bytes of the body, or of the chunk, that are still to come.
        self._num_left = 0
        self._is_http_1_0 = False

    @property
    def is_complete(self) -> bool:
        return self._state is _State.COMPLETE

    @property
    def keeps_connection(self) -> bool:
        """Whether another request may follow on the same connection, once the response is complete."""
        asked = self.headers.get("connection", "").lower()
        return not self._buffer and (asked == "keep-alive" if self._is_http_1_0 else asked != "close")

    def feed(self, data: bytes) -> bytes:
        """What `data` adds to the body. Raises ProtocolError."""
        if self._state is _State.CHUNK_SIZE and not self._buffer:
            # Nearly always: an event, as one chunk, in one piece. A few microseconds less of the client's for each.
            begin = data.find(b"\r\n") + 2
            end = len(data) - 2
            if 2 < begin < end and _is_number(data[: begin - 2], end - begin) and data.endswith(b"\r\n"):
                return data[begin:end]
        self._buffer = self._buffer + data if self._buffer else data
        body: list[bytes] = []
        while self._advance(body):
            pass
        return body[0] if len(body) == 1 else b"".join(body)

    def end(self) -> None:
        """The connection has ended. Raises ProtocolError for a response that has not."""
        if self._state is _State.UNTIL_END:
            self._state = _State.COMPLETE
            self._is_http_1_0 = True
        if not self.is_complete:
            raise ProtocolError("the server closed the connection before the end of its answer")

    def _advance(self, body: list[bytes]) -> bool:
        """One element of the response; False where its bytes are not all there yet."""
        match self._state:
            case _State.HEAD:
                return self._read_head()
            case _State.UNTIL_END:
                body.append(self._take(len(self._buffer)))
                return False
            case _State.SIZED | _State.CHUNK:
                return self._read_body(body)
            case _State.CHUNK_SIZE:
                return self._read_chunk_size()
            case _State.CHUNK_END:
                if (line := self._take_line()) is None:
                    return False
                if line:
                    raise ProtocolError("a chunk is longer than its size says")
                self._state = _State.CHUNK_SIZE
                return True
            case _State.TRAILERS:
                if (line := self._take_line()) is None:
                    return False
                if not line:
                    self._state = _State.COMPLETE
                return True
            case _State.COMPLETE:
                return False

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_LINE:
                raise ProtocolError("the head of the response does not end")
            return False
        first, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ProtocolError(f"not an HTTP/1.1 response: {first[:80]!r}")
        self._is_http_1_0 = version == "HTTP/1.0"
        status = int(rest[:3])
        if 100 <= status < 200:
            return True
        self.status = status
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        if status in (204, 304):
            self._state = _State.COMPLETE
        elif self.headers.get("transfer-encoding", "").lower().endswith("chunked"):
            self._state = _State.CHUNK_SIZE
        elif "content-length" in self.headers:
            self._num_left = _number(self.headers["content-length"], 10)
            self._state = _State.SIZED if self._num_left else _State.COMPLETE
        else:
            self._state = _State.UNTIL_END
        return True

    def _read_chunk_size(self) -> bool:
        if (line := self._take_line()) is None:
            return False
        self._num_left = _number(line.partition(b";")[0].decode("latin-1"), 16)
        self._state = _State.CHUNK if self._num_left else _State.TRAILERS
        return True

    def _read_body(self, body: list[bytes]) -> bool:
        if not self._buffer:
            return False
        part = self._take(self._num_left)
        self._num_left -= len(part)
        body.append(part)
        if self._num_left == 0:
            self._state = _State.CHUNK_END if self._state is _State.CHUNK else _State.COMPLETE
        return True

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_LINE:
                raise ProtocolError("a line of the response does not end")
            return None
        return self._take(end + 2)[:-2]


def _is_number(text: bytes, value: int) -> bool:
    """Whether `text` is `value` in base 16; False where it takes a closer look."""
    try:
        return int(text, 16) == value
    except ValueError:
        return False


def _number(text: str, base: int) -> int:
    try:
        value = int(text.strip(), base)
    except ValueError:
        value = -1
    if value < 0:
        raise ProtocolError(f"a length of the response is no number: {text[:80]!r}")
    return value

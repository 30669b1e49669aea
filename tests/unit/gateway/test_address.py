from __future__ import annotations

import pytest

from pagoda.gateway.address import Address


@pytest.mark.parametrize(
    ("text", "address", "is_name", "is_local"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80), False, True),
        ("10.0.0.1:50051", Address("10.0.0.1", 50051), False, False),
        ("[::1]:50051", Address("::1", 50051), False, True),
        ("tokenizer.pagoda.svc:50051", Address("tokenizer.pagoda.svc", 50051), True, False),
        ("unix:/run/a b.sock", Address(path="/run/a b.sock"), False, True),
        ("unix:///run/a.sock", Address(path="/run/a.sock"), False, True),
    ],
)
def test_addresses(text: str, address: Address, is_name: bool, is_local: bool) -> None:
    parsed = Address.parse(text)
    assert (parsed, parsed.is_name, parsed.is_local) == (address, is_name, is_local)
    assert Address.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:0", "host:65536", "host:http", "unix:relative"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Address.parse(text)

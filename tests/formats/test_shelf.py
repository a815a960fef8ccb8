"""formats/shelf: what was put comes back, whatever else is there is a FormatError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import read_vector

from layerkit.errors import FormatError
from layerkit.formats.shelf import HEADER, name_entry, parse_entry, serialize_entry

ENTRY = serialize_entry("a key", b"bytes")


@given(st.text(max_size=50), st.binary(max_size=2000))
def test_what_was_put_comes_back(key: str, data: bytes) -> None:
    assert parse_entry(serialize_entry(key, data), key) == data


def test_the_vector_is_what_is_written() -> None:
    assert read_vector("shelf/entry.txt") == ENTRY


@pytest.mark.parametrize("offset", range(len(ENTRY)))
def test_a_flipped_bit_is_noticed(offset: int) -> None:
    raw = bytearray(ENTRY)
    raw[offset] ^= 1
    if offset == 5:  # the minor: a later one may say more, and this one says nothing else
        assert parse_entry(bytes(raw), "a key") == b"bytes"
        return
    with pytest.raises(FormatError):
        parse_entry(bytes(raw), "a key")


@pytest.mark.parametrize("size", range(len(ENTRY)))
def test_a_torn_entry_is_noticed(size: int) -> None:
    with pytest.raises(FormatError):
        parse_entry(ENTRY[:size], "a key")


def test_a_longer_header_of_a_later_minor_is_skipped() -> None:
    head = bytearray(ENTRY[: HEADER.size])
    head[5], head[6] = 1, HEADER.size + 8
    assert parse_entry(bytes(head) + bytes(8) + b"bytes", "a key") == b"bytes"


def test_an_entry_of_another_key_is_refused() -> None:
    with pytest.raises(FormatError, match="another key"):
        parse_entry(ENTRY, "b key")


def test_any_key_makes_a_safe_name() -> None:
    assert all(name_entry(key).isalnum() for key in ("../../x", "", "a\0b", "x" * 10_000))

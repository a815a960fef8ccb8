"""formats/bundle: the head says where each part is; whatever else is there is a FormatError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import read_vector

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats.bundle import HEADER, head_size, parse_head, serialize_head

PARTS = [b'{"manifests":[]}', b"a part", b"x" * 300]
LISTED = [(sha256_digest(part), len(part)) for part in PARTS]
HEAD = serialize_head(LISTED)
SIZE = len(HEAD) + sum(map(len, PARTS))


def test_a_head_says_where_each_part_is() -> None:
    raw = HEAD + b"".join(PARTS)
    parts = parse_head(raw, len(raw))
    assert [raw[part.offset : part.offset + part.size] for part in parts] == PARTS
    assert [part.digest for part in parts] == [digest for digest, _ in LISTED]
    assert head_size(raw) == len(HEAD)


def test_the_vector_is_what_is_written() -> None:
    raw = read_vector("bundle/two-parts.txt")
    parts = parse_head(raw, len(raw))
    held = [raw[part.offset : part.offset + part.size] for part in parts]
    assert serialize_head([(sha256_digest(one), len(one)) for one in held]) + b"".join(held) == raw


def test_a_later_major_is_a_version_error() -> None:
    raw = read_vector("bundle/unknown-major.txt")
    with pytest.raises(VersionError):
        parse_head(raw, len(raw))


def test_a_later_minor_may_have_a_longer_header() -> None:
    later = HEAD[:5] + b"\1" + (HEADER.size + 3).to_bytes(2, "little") + HEAD[8:12]
    raw = later + b"new" + HEAD[12:]
    assert [part.offset for part in parse_head(raw, SIZE + 3)] == [
        part.offset + 3 for part in parse_head(HEAD, SIZE)
    ]
    same = HEAD[:6] + (HEADER.size + 3).to_bytes(2, "little") + HEAD[8:12] + b"new" + HEAD[12:]
    with pytest.raises(FormatError, match="header size"):
        parse_head(same, SIZE + 3)


@pytest.mark.parametrize("size", range(len(HEAD)))
def test_a_torn_head_is_noticed(size: int) -> None:
    with pytest.raises(FormatError):
        parse_head(HEAD[:size], SIZE)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_noticed(change: int) -> None:
    with pytest.raises(FormatError, match="want"):
        parse_head(HEAD, SIZE + change)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [LISTED[0], LISTED[0]],
        [(LISTED[0][0], 0)],
        [(LISTED[0][0], (1 << 40) + 1)],
        [(Digest("sha256", at.to_bytes(32, "big")), 1) for at in range(4097)],
    ],
)
def test_what_no_reader_takes_is_not_written(parts: list[tuple[Digest, int]]) -> None:
    with pytest.raises(FormatError):
        serialize_head(parts)


@given(st.binary(max_size=200), st.integers(0, 1 << 41))
def test_any_bytes_are_a_format_error(raw: bytes, size: int) -> None:
    with pytest.raises(FormatError):
        parse_head(raw, size)

"""formats/protocol: chunk batch, form blob, error document."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import zstandard
from builders import noise
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import Digest, chunk_id
from layerkit.errors import FormatError, VersionError
from layerkit.formats.protocol import (
    BATCH_HEADER,
    MAX_REQUEST_COUNT,
    Problem,
    pack_form,
    parse_chunk_batch,
    parse_chunk_request,
    parse_errors,
    serialize_chunk_batch,
    serialize_chunk_request,
    serialize_errors,
    unpack_form,
)

CHUNKS = [noise(size, size) for size in (300, 1, 8192, 1024)]
SIZES = [len(chunk) for chunk in CHUNKS]


def _frame(plain: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(plain)


def _plain(records: bytes, count: int = 1, major: int = 0, magic: bytes = b"LKBATCH\0") -> bytes:
    return BATCH_HEADER.pack(magic, major, 0, BATCH_HEADER.size, count) + records


def test_a_request_round_trips() -> None:
    ids = [chunk_id(chunk) for chunk in CHUNKS]
    assert parse_chunk_request(serialize_chunk_request(ids)) == ids


@pytest.mark.parametrize("raw", [b"", b"x" * 31, b"x" * 33, bytes(32 * (MAX_REQUEST_COUNT + 1))])
def test_a_request_of_another_size_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_chunk_request(raw)


def test_a_request_holds_chunk_ids_only() -> None:
    with pytest.raises(FormatError):
        serialize_chunk_request([Digest("sha256", bytes(32))])


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_batch_round_trips_however_it_is_cut(step: int) -> None:
    raw = b"".join(serialize_chunk_batch([*CHUNKS, None], 5))
    parts = [raw[at : at + step] for at in range(0, len(raw), step)]
    assert list(parse_chunk_batch(parts, [*SIZES, 9])) == [*CHUNKS, None]


def test_a_batch_of_another_size_is_left_to_the_id() -> None:
    raw = b"".join(serialize_chunk_batch([b"short"], 1))
    assert list(parse_chunk_batch([raw], [100])) == [b"short"]


BAD_BATCHES = {
    "html": b"<html><body>busy</body></html>",
    "empty": b"",
    "not magic": _frame(_plain(b"\0", magic=b"LKCHUNKS")),
    "count": _frame(_plain(b"\0\0", count=2)),
    "mark": _frame(_plain(b"\x07")),
    "empty chunk": _frame(_plain(b"\x01\x00")),
    "endless varint": _frame(_plain(b"\x01" + b"\xff" * 30)),
    "over the size": _frame(_plain(b"\x01\xff\x7f" + bytes(20000))),
    "ends early": _frame(_plain(b"\x01\x05abc")),
    "junk in the frame": _frame(_plain(b"\0junk")),
    "junk after the frame": _frame(_plain(b"\0")) + b"junk",
    "a second frame": _frame(_plain(b"\0")) * 2,
    "cut frame": _frame(_plain(b"\0"))[:-3],
}


@pytest.mark.parametrize("raw", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_bad_batch_is_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        list(parse_chunk_batch([raw], [100]))


def test_a_batch_of_an_unknown_major_is_a_version_error() -> None:
    with pytest.raises(VersionError):
        list(parse_chunk_batch([_frame(_plain(b"\0", major=1))], [100]))


def test_a_bomb_ends_at_its_limit_in_bounded_time() -> None:
    bomb = _frame(bytes(1 << 28))
    started = time.process_time()
    with pytest.raises(FormatError, match="over its limit"):
        list(parse_chunk_batch([bomb], [100]))
    assert time.process_time() - started < 5


def test_a_frame_that_wants_much_memory_is_refused() -> None:
    params = zstandard.ZstdCompressionParameters(window_log=29)
    packer = zstandard.ZstdCompressor(compression_params=params).compressobj()
    raw = packer.compress(noise(1000)) + packer.flush()
    with pytest.raises(FormatError, match="memory"):
        list(parse_chunk_batch([raw], [100_000]))


@given(st.binary(max_size=200), st.integers(0, 300))
def test_mutated_batches_raise_only_format_error(junk: bytes, at: int) -> None:
    raw = bytearray(b"".join(serialize_chunk_batch([b"abc" * 50, None], 2)))
    raw[at : at + len(junk)] = junk
    with contextlib.suppress(FormatError):
        list(parse_chunk_batch([bytes(raw)], [150, 5]))


def test_a_form_blob_round_trips() -> None:
    form = noise(5000) + bytes(5000)
    assert unpack_form(pack_form(form), len(form)) == form


@pytest.mark.parametrize("size", [0, 9, 11, 1 << 40, -1])
def test_a_form_blob_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        unpack_form(pack_form(b"0123456789"), size)


@given(st.binary(max_size=200))
def test_random_form_blobs_raise_only_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_form(raw, 1000)


def test_an_error_document_round_trips() -> None:
    problem = Problem("NOT_FOUND", "chunk is not held here", "b3")
    assert parse_errors(serialize_errors(problem)) == [problem]


@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["errors", "code", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_random_error_documents_raise_only_format_error(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_errors(raw)

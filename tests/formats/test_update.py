"""The update stream: what goes in comes out, however it is cut; what breaks a rule is refused."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator

import pytest
from builders import noise
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats import update
from layerkit.formats.cursor import Writer
from layerkit.formats.update import (
    BLOB,
    CHUNKS,
    DELTA,
    FORM,
    LIST,
    PACKED,
    Documents,
    Part,
    UpdateReader,
    serialize_update,
)

OLD_TOP = sha256_digest(b"old")
OLD = Documents(b'{"old": 1}', b"", b'{"config": 1}', b'{"artifact": 1}')
CONFIG = b'{"config": 2}'
MANIFEST = b'{"new": "sha256:%s"}' % sha256_digest(CONFIG).hex.encode()
SUBJECT = b"sha256:" + sha256_digest(MANIFEST).hex.encode()
ARTIFACT, INDEX = b'{"subject": "%s"}' % SUBJECT, b'{"manifests": ["%s"]}' % SUBJECT
NEW = Documents(MANIFEST, b"", CONFIG, ARTIFACT)
IN_INDEX = Documents(INDEX, MANIFEST, CONFIG, ARTIFACT)
WITHOUT = Documents(MANIFEST, b"", CONFIG, b"")
PARTS = (
    Part(0, DELTA, b"a delta"),
    Part(2, LIST, b"a list"),
    Part(2, CHUNKS, b""),
    Part(2, CHUNKS, b"chunks"),
    Part(127, BLOB, noise(1000)),
)


def read(
    raw: bytes, old: Documents | None = OLD, step: int = 1 << 20
) -> tuple[Documents, tuple[Part, ...]]:
    reader = UpdateReader(raw[at : at + step] for at in range(0, len(raw), step))
    documents = reader.read_documents(old)
    parts = (Part(entry.layer, entry.kind, data) for entry, data in reader.read_parts())
    return documents, tuple(parts)


@pytest.mark.parametrize("step", [1, 7, 44, 1 << 20])
@pytest.mark.parametrize("old", [OLD, None])
@pytest.mark.parametrize(
    "new",
    [NEW, Documents(INDEX, MANIFEST, CONFIG, ARTIFACT), Documents(MANIFEST, b"", CONFIG, b"")],
)
def test_what_goes_in_comes_out(new: Documents, old: Documents | None, step: int) -> None:
    top = OLD_TOP if old is not None else None
    raw = serialize_update(new, PARTS, top, old)
    assert UpdateReader([raw]).old == top
    assert read(raw, old, step) == (new, PARTS)


def test_digests_that_follow_from_other_documents_do_not_travel() -> None:
    other = b"sha256:" + sha256_digest(b"another").hex.encode()
    near = serialize_update(NEW, (), None, None)
    far = serialize_update(
        Documents(MANIFEST, b"", CONFIG, b'{"subject": "%s"}' % other), (), None, None
    )
    assert len(far) - len(near) >= 30


def test_a_document_that_is_no_text_is_not_sent() -> None:
    with pytest.raises(FormatError, match="no JSON text"):
        serialize_update(Documents(MANIFEST, b"", CONFIG, b"\1"), (), None, None)


def test_parts_are_there_before_the_stream_has_ended() -> None:
    raw = serialize_update(NEW, PARTS, None, None)

    def stream() -> Iterator[bytes]:
        yield raw[:-900]
        pytest.fail("read further than needed")

    reader = UpdateReader(stream())
    reader.read_documents(None)
    parts = reader.read_parts()
    assert [next(parts)[1] for _ in range(4)] == [part.data for part in PARTS[:4]]


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("major", [0, 2])
def test_another_major_is_refused(major: int) -> None:
    raw = serialize_update(NEW, (), None, None)
    with pytest.raises(VersionError):
        UpdateReader([raw[:4] + bytes((major,)) + raw[5:]])


def test_a_longer_header_of_a_newer_minor_is_skipped() -> None:
    raw = serialize_update(NEW, PARTS, None, None)
    size = update.HEADER.size + 3
    newer = raw[:5] + b"\1" + size.to_bytes(2, "little") + raw[8:44] + b"new" + raw[44:]
    assert read(newer, None) == (NEW, PARTS)
    with pytest.raises(FormatError, match="header size"):
        UpdateReader([newer[:5] + b"\0" + newer[6:]])


def test_a_stream_that_ends_early_is_refused_wherever_it_does() -> None:
    raw = serialize_update(NEW, PARTS, OLD_TOP, OLD)
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            read(raw[:size])


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(FormatError, match="follow the end"):
        read(serialize_update(NEW, PARTS, None, None) + b"\0", None)


def table(*rows: tuple[int, int, int]) -> bytes:
    """An update without documents and with this table."""
    out = Writer()
    out.raw(bytes(4))
    out.varint(len(rows))
    for layer, kind, size in rows:
        out.varint(layer)
        out.u8(kind)
        out.varint(size)
    return framed(out.getvalue())


def framed(content: bytes) -> bytes:
    return with_frame(update.zstandard.ZstdCompressor().compress(content))


def with_frame(frame: bytes) -> bytes:
    head = update.HEADER.pack(
        update.MAGIC, update.MAJOR, update.MINOR, update.HEADER.size, bytes(32), len(frame)
    )
    return head + frame


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 0, 0)],
        [(0, 7, 0)],
        [(128, DELTA, 0)],
        [(1, DELTA, 0), (0, DELTA, 0)],
        [(0, DELTA, 0), (0, FORM, 0)],
        [(0, PACKED, 0), (0, PACKED, 0)],
        [(0, CHUNKS, 0)],
        [(0, FORM, 0), (0, CHUNKS, 0)],
        [(0, LIST, 0), (1, CHUNKS, 0)],
        [(0, LIST, 0), (0, CHUNKS, 0), (0, LIST, 0)],
        [(0, BLOB, update.MAX_UPDATE_SIZE + 1)],
        [(0, BLOB, update.MAX_UPDATE_SIZE), (1, BLOB, 1)],
        [(0, LIST, 0)] + [(0, CHUNKS, 0)] * update.MAX_PART_COUNT,
    ],
)
def test_parts_that_do_not_go_together_are_refused(rows: list[tuple[int, int, int]]) -> None:
    with pytest.raises(FormatError):
        UpdateReader([table(*rows)]).read_documents(None)


def test_a_declared_size_allocates_nothing() -> None:
    tracemalloc.start()
    reader = UpdateReader([table((0, BLOB, update.MAX_UPDATE_SIZE)), b"few bytes"])
    reader.read_documents(None)
    with pytest.raises(FormatError, match="ends early"):
        list(reader.read_parts())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_marks_that_stand_for_too_much_are_refused() -> None:
    """2 MiB of marks would be 128 MiB of digests."""
    out = Writer()
    for document in (b"", b"", b"\2" * (2 << 20), b""):
        out.sized(document)
    out.varint(0)
    with pytest.raises(FormatError, match="over the limit"):
        UpdateReader([framed(out.getvalue())]).read_documents(None)


RLE_BLOCK = ((128 << 10) << 3 | 2).to_bytes(3, "little") + b"a"  # RFC 8878 3.1.1.2: 128 KiB


def rle_update(window_log: int, blocks: int) -> bytes:
    """An update whose frame makes 128 KiB of every four bytes."""
    return with_frame(
        b"\x28\xb5\x2f\xfd\x00" + bytes(((window_log - 10) << 3,)) + blocks * RLE_BLOCK
    )


def test_a_frame_that_makes_too_much_stops_early() -> None:
    tracemalloc.start()
    with pytest.raises(FormatError, match="more than"):
        UpdateReader([rle_update(17, 8000)]).read_documents(None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * update.MAX_CONTENT_SIZE


def test_a_frame_with_a_large_window_is_refused() -> None:
    with pytest.raises(FormatError, match="not a zstd frame"):
        UpdateReader([rle_update(30, 1)]).read_documents(OLD)


@pytest.mark.parametrize("rest", [b"\0", bytes(100), framed(b"x")[44:]])
def test_a_frame_that_is_shorter_than_declared_is_refused(rest: bytes) -> None:
    frame = table()[update.HEADER.size :]
    with pytest.raises(FormatError):
        UpdateReader([with_frame(frame + rest)]).read_documents(None)


edits = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6)
UPDATE = serialize_update(NEW, PARTS, OLD_TOP, OLD)


@given(edits)
def test_a_damaged_one_raises_only_format_errors(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(UPDATE)
    for at, value in changes:
        raw[at % len(raw)] = value
    with contextlib.suppress(FormatError):
        read(bytes(raw))


@given(st.binary(max_size=300))
def test_random_contents_raise_only_format_errors(content: bytes) -> None:
    with contextlib.suppress(FormatError):
        read(framed(content), None)

"""jobs/updating: an update whose large parts are read as it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import LayoutSource, hello_files, noise, publish_image
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import sha256_digest
from layerkit.edges.http import Blob, Joined, UpdateAnswer
from layerkit.edges.layout import Layout
from layerkit.edges.storage import StoredBlob
from layerkit.formats import oci
from layerkit.formats.tokens import ANYONE
from layerkit.formats.update import Entry, UpdateReader
from layerkit.jobs.updating.forms import Forms
from layerkit.jobs.updating.streams import Piece, UpdateStream

AMD64 = oci.parse_platform("linux/amd64")


def stored(data: bytes) -> StoredBlob:
    def read(offset: int, size: int) -> Iterator[bytes]:
        for at in range(offset, offset + size, 7):
            yield data[at : min(at + 7, offset + size)]

    return StoredBlob(len(data), None, read)


def stream(*parts: tuple[bytes, bool]) -> UpdateStream:
    pieces = [
        Piece(
            Entry(at, 4, len(data)),
            stored(data) if is_stored else data,
            str(sha256_digest(data)) if is_stored else "",
        )
        for at, (data, is_stored) in enumerate(parts)
    ]
    return UpdateStream(b"the head", tuple(pieces))


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=5),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_any_part_of_it_is_that_of_the_whole(
    parts: list[tuple[bytes, bool]], offset: int, size: int
) -> None:
    made, whole = stream(*parts), b"the head" + b"".join(data for data, _ in parts)
    assert made.join() == whole and made.size == len(whole)
    size = max(0, min(size, len(whole) - offset))
    assert b"".join(made.read(offset, size)) == whole[offset : offset + size]


def test_other_bytes_have_another_etag() -> None:
    tags = {
        stream((b"one", True)).etag,
        stream((b"two", True)).etag,
        stream((b"one", False)).etag,
        stream((b"one", True), (b"two", True)).etag,
    }
    assert len(tags) == 4
    assert stream((b"one", True)).etag == stream((b"one", True)).etag


@pytest.fixture
def source(tmp_path: Path) -> LayoutSource:
    publish_image(tmp_path / "l", "fn:v1", hello_files(noise(3_000_000)))
    return LayoutSource(tmp_path / "l")


def ask(source: LayoutSource) -> UpdateAnswer:
    return source.read_update("fn", "v1", [], AMD64, ANYONE, 0)


def test_a_large_form_is_read_as_it_is_sent(
    source: LayoutSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise AssertionError("it is unpacked")

    monkeypatch.setattr(Forms, "read_form", fail)
    answer = ask(source)
    assert isinstance(answer.raw, Joined) and answer.etag
    parts: list[bytes] = []
    for part in answer.raw.parts:
        if isinstance(part, Blob):
            assert part.path is not None and part.size > 2_000_000
            parts += part.read(0, part.size)
        else:
            assert len(part) <= 1 << 20
            parts.append(part)
    assert sum(map(len, parts)) == answer.raw.size
    reader = UpdateReader(parts)
    reader.read_documents(None)
    assert [entry.layer for entry, _ in reader.read_parts()] == [0, 1]


@pytest.mark.parametrize("how", ["rotten", "short", "gone"])
def test_a_damaged_one_is_left_out(source: LayoutSource, tmp_path: Path, how: str) -> None:
    layout = Layout(tmp_path / "l")
    path = max((layout.path / "blobs/sha256").iterdir(), key=lambda one: one.stat().st_size)
    forms = [one for one in path.parent.iterdir() if one.stat().st_size > 2_000_000]
    answer = ask(source)  # it was good once, and is known as such
    assert isinstance(answer.raw, Joined)
    for form in forms:
        data = form.read_bytes()
        form.unlink()
        if how != "gone":
            form.write_bytes(data[:-1] + (b"?" if how == "rotten" else b""))
    answer = ask(LayoutSource(layout.path))
    assert isinstance(answer.raw, bytes) and not answer.was_kept
    again = ask(source)
    assert isinstance(again.raw, bytes) and not again.was_kept

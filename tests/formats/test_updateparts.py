"""Parts of an update: chunks, lists and forms come out as they went in, or are refused."""

from __future__ import annotations

import contextlib
import lzma
import tracemalloc

import pytest
import zstandard
from builders import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from layerkit.digest import SIZE, Digest, sha256_digest
from layerkit.errors import ChunkDigestError, FormatError, IntegrityError
from layerkit.formats import delta, formpack, oci, updateparts
from layerkit.formats.chunkmanifest import (
    ChunkManifest,
    build_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.cursor import Writer
from layerkit.formats.protocol import pack_form
from layerkit.formats.update import CHUNKS, DELTA, FORM, LIST, PACKED, Part
from layerkit.formats.updateparts import make_chunk_parts, read_chunks, read_form, read_list


def listed(form: bytes) -> tuple[ChunkManifest, bytes]:
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form), 3)
    return manifest, serialize_chunk_manifest(manifest)


OLD = noise(60_000)
NEW = OLD[:20_000] + b"edited" + OLD[20_100:50_000] + noise(9_000, 2) + OLD[50_000:]
OLD_MANIFEST, OLD_LIST = listed(OLD)
NEW_MANIFEST, NEW_LIST = listed(NEW)
OLD_NAME, NEW_NAME = sha256_digest(OLD_LIST), sha256_digest(NEW_LIST)
KNOWN = set(OLD_MANIFEST.list_raw_ids())
DESCRIPTOR = oci.Descriptor(oci.CHUNK_MANIFEST, NEW_NAME, len(NEW_LIST))


def read_old(digest: Digest) -> tuple[ChunkManifest, bytes]:
    if digest != OLD_NAME:
        raise IntegrityError("not held")
    return OLD_MANIFEST, OLD


def make(near: bool = True, known: bool = True) -> list[Part]:
    lists = {OLD_NAME: OLD_LIST} if near else {}
    return make_chunk_parts(5, NEW_LIST, NEW, lists, KNOWN if known else set(), read_old)


def join(chunks: dict[bytes, bytes]) -> bytes:
    return b"".join(chunks[raw] for raw in NEW_MANIFEST.list_raw_ids())


def chunks_of(form: bytes, manifest: ChunkManifest) -> dict[bytes, bytes]:
    offsets = zip(manifest.offsets(), manifest.sizes, manifest.list_raw_ids(), strict=False)
    return {raw: form[at : at + size] for at, size, raw in offsets}


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_the_list_and_what_is_missing_give_the_form(near: bool, known: bool) -> None:
    first, *parts = make(near, known)
    assert (first.layer, first.kind) == (5, LIST)
    assert read_list(first.data, DESCRIPTOR, {OLD_NAME: OLD_LIST}.__getitem__) == NEW_LIST
    held = chunks_of(OLD, OLD_MANIFEST) if known else {}
    for part in parts:
        assert (part.layer, part.kind) == (5, CHUNKS)
        came = {name.raw: data for name, data in read_chunks(part.data, NEW_MANIFEST, read_old)}
        assert not came.keys() & held.keys()
        held |= came
    assert join(held) == NEW


def test_chunks_are_sent_against_what_they_replace() -> None:
    """Of 15 KB that are new, 9 are noise; the rest stood in the old form."""
    near, far = (sum(len(part.data) for part in make(near)) for near in (True, False))
    assert near < 11_000 and far - near > 4_000


def test_much_comes_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updateparts, "PART_SIZE", 10_000)
    _, *parts = make(near=False, known=False)
    assert len(parts) > 6
    sizes = [
        sum(len(data) for _, data in read_chunks(part.data, NEW_MANIFEST, read_old))
        for part in parts
    ]
    assert max(sizes) <= 10_000 and sum(sizes) >= len(NEW)


# --- refused -----------------------------------------------------------------------------------


def test_another_list_than_the_published_one_is_refused() -> None:
    part = make()[0]
    other = oci.Descriptor(oci.CHUNK_MANIFEST, OLD_NAME, len(NEW_LIST))
    with pytest.raises(IntegrityError):
        read_list(part.data, other, {OLD_NAME: OLD_LIST}.__getitem__)


def test_a_list_over_the_limit_is_refused() -> None:
    large = oci.Descriptor(oci.CHUNK_MANIFEST, NEW_NAME, updateparts.MAX_LIST_SIZE + 1)
    with pytest.raises(FormatError):
        read_list(make()[0].data, large, {OLD_NAME: OLD_LIST}.__getitem__)


def test_a_chunk_that_is_another_is_refused() -> None:
    part = make()[1]
    other, _ = listed(NEW[::-1])
    with pytest.raises((ChunkDigestError, FormatError)):
        list(read_chunks(part.data, other, read_old))


def test_a_neighbour_that_is_not_held_is_refused() -> None:
    part = make()[1]
    at = part.data.index(OLD_NAME.raw)
    with pytest.raises(IntegrityError):
        list(
            read_chunks(
                part.data[:at] + bytes(SIZE) + part.data[at + SIZE :], NEW_MANIFEST, read_old
            )
        )


def test_a_part_that_makes_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updateparts, "MAX_PART_SIZE", 50_000)
    with pytest.raises(FormatError, match="over the limit"):
        list(read_chunks(make(known=False)[1].data, NEW_MANIFEST, read_old))


@pytest.mark.parametrize("kind", [FORM, PACKED])
def test_a_form_that_makes_too_much_stops_early(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of zeros out of a few kilobytes."""
    monkeypatch.setattr(updateparts, "LEAST_LIMIT", 1 << 20)
    size = 64 << 20
    if kind == FORM:
        data = zstandard.ZstdCompressor().compress(bytes(size))
    else:
        head = Writer()
        head.raw(formpack.MAGIC + bytes((formpack.MAJOR, formpack.MINOR, formpack.AS_IS)))
        head.varint(size)
        head.varint(size)
        packed = lzma.compress(bytes(size), format=lzma.FORMAT_RAW, filters=formpack.FILTERS)
        data = head.getvalue() + packed
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_form(kind, data, lambda _: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_forms_come_out() -> None:
    olds = {sha256_digest(OLD).raw[:16]: OLD}
    for kind, data in (
        (DELTA, delta.diff([OLD], NEW)),
        (FORM, pack_form(NEW)),
        (PACKED, formpack.pack(NEW)),
    ):
        assert read_form(kind, data, olds.get) == NEW
    with pytest.raises(IntegrityError, match="not held"):
        read_form(DELTA, delta.diff([OLD], NEW), lambda _: None)


edits = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6)
PARTS = make()


def damaged(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for at, value in changes:
        out[at % len(out)] = value
    return bytes(out)


@settings(max_examples=60)
@given(edits)
def test_damage_raises_only_our_errors(changes: list[tuple[int, int]]) -> None:
    held = chunks_of(NEW, NEW_MANIFEST)
    with contextlib.suppress(FormatError, IntegrityError):
        for name, data in read_chunks(damaged(PARTS[1].data, changes), NEW_MANIFEST, read_old):
            assert held[name.raw] == data
    with contextlib.suppress(FormatError, IntegrityError, KeyError):
        raw = read_list(
            damaged(PARTS[0].data, changes), DESCRIPTOR, {OLD_NAME: OLD_LIST}.__getitem__
        )
        assert raw == NEW_LIST


@given(st.binary(max_size=200))
def test_random_parts_raise_only_our_errors(data: bytes) -> None:
    for kind in (DELTA, FORM, PACKED):
        with contextlib.suppress(FormatError, IntegrityError):
            read_form(kind, data, lambda _: None)
    with contextlib.suppress(FormatError, IntegrityError):
        list(read_chunks(data, NEW_MANIFEST, read_old))
    with contextlib.suppress(FormatError, IntegrityError, KeyError):
        read_list(data, DESCRIPTOR, {}.__getitem__)

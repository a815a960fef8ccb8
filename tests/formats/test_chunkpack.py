"""formats/chunkpack: what is packed is read, in the order of birth; any other bytes are refused."""

from __future__ import annotations

import random

import pytest
from builders import noise
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import sha256_digest
from layerkit.errors import ChunkDigestError, FormatError, IntegrityError
from layerkit.formats import chunkpack
from layerkit.formats.chunkmanifest import ChunkManifest, build_chunk_manifest
from layerkit.formats.chunkpack import (
    Frame,
    PackIndex,
    make_pack,
    parse_pack_index,
    read_frame,
)
from layerkit.formats.cursor import Writer, zigzag


def listed(form: bytes) -> ChunkManifest:
    return build_chunk_manifest(form, "raw", sha256_digest(form), len(form), 3)


FORM = noise(400_000)
MANIFEST = listed(FORM)
INDEX, PACK = make_pack(FORM, MANIFEST)


def read_all(index: PackIndex, pack: bytes, manifest: ChunkManifest) -> dict[bytes, bytes]:
    return {
        chunk.raw: bytes(data)
        for frame in index.frames
        for chunk, data in read_frame(pack[frame.offset :][: frame.size], frame, manifest)
    }


def chunks_of(form: bytes, manifest: ChunkManifest) -> dict[bytes, bytes]:
    return {chunk.id.raw: form[offset : offset + chunk.size] for offset, chunk in manifest.spans()}


def test_all_chunks_come_out_of_a_pack() -> None:
    index = parse_pack_index(INDEX, MANIFEST)
    assert read_all(index, PACK, MANIFEST) == chunks_of(FORM, MANIFEST)
    assert sum(frame.size for frame in index.frames) == len(PACK)
    assert len(index.frames) == pytest.approx(len(FORM) / chunkpack.FRAME_SIZE, abs=1)


def test_a_chunk_that_comes_twice_is_packed_once() -> None:
    form = FORM + FORM
    index, pack = make_pack(form, manifest := listed(form))
    assert len(pack) < 1.1 * len(PACK)
    assert read_all(parse_pack_index(index, manifest), pack, manifest) == chunks_of(form, manifest)


def test_what_any_older_version_lacks_is_at_the_beginning() -> None:
    """Six versions with edits all over; each is packed with what the one before had."""
    dice = random.Random(4)
    forms, order = [noise(700_000)], list[bytes]()
    for _ in range(6):
        form = bytearray(forms[-1])
        for _ in range(8):
            form[dice.randrange(len(form))] ^= 1
        forms.append(bytes(form))
    for form in forms:
        manifest = listed(form)
        raw, pack = make_pack(form, manifest, order)
        index = parse_pack_index(raw, manifest)
        ids = manifest.list_raw_ids()
        order = [ids[place] for place in index.list_places()]
    for old in forms[:-1]:
        held = set(listed(old).list_raw_ids())
        missing = [raw for raw in ids if raw not in held]
        found = index.find_frames(missing, manifest)
        assert found == list(index.frames[: len(found)])  # one range, from the start
        size = sum(frame.size for frame in found)
        plain = sum(len(chunks_of(forms[-1], manifest)[raw]) for raw in missing)
        assert size < plain + 2 * chunkpack.FRAME_SIZE
    assert len(pack) > 600_000


def test_find_frames_gives_what_holds_them() -> None:
    index = parse_pack_index(INDEX, MANIFEST)
    ids = MANIFEST.list_raw_ids()
    wanted = [ids[index.frames[2].places[0]], ids[index.frames[5].places[-1]], b"?" * 32]
    assert index.find_frames(wanted, MANIFEST) == [index.frames[2], index.frames[5]]
    assert not index.find_frames([], MANIFEST)


def test_an_empty_form_has_an_empty_pack() -> None:
    manifest = listed(b"")
    index, pack = make_pack(b"", manifest)
    assert not pack and not parse_pack_index(index, manifest).frames


def serialize(frames: list[tuple[int, int]], stretches: list[tuple[int, int]], count: int) -> bytes:
    out = Writer()
    out.raw(chunkpack.HEADER.pack(b"LKPX", 0, 0, 16, count, len(frames)))
    out.varint(len(stretches))
    for start, length in stretches:
        out.varint(zigzag(start))
        out.varint(length)
    for chunk_count, size in frames:
        out.varint(chunk_count)
        out.varint(size)
    return out.getvalue()


@pytest.mark.parametrize(
    ("frames", "stretches", "count", "why"),
    [
        ([(2, 9)], [(0, 2)], 2, ""),
        ([(2, 9)], [(0, 1), (0, 1)], 2, ""),
        ([(1, 9)], [(0, 2)], 2, "hold 1 chunks"),
        ([(3, 9)], [(0, 2)], 2, "over its limit"),
        ([(2, 0)], [(0, 2)], 2, "empty frame"),
        ([(2, 1), (0, 1)], [(0, 2)], 2, "empty frame"),
        ([(2, 1 << 30)], [(0, 2)], 2, "over its limit"),
        ([(2, 9)], [(0, 0), (0, 2)], 2, "chunks 0 to 0"),
        ([(2, 9)], [(-1, 2)], 2, "chunks -1"),
        ([(2, 9)], [(0, 1)], 2, "got 1 chunks"),
        ([(2, 9)], [(0, 1), (-1, 1)], 2, "twice"),
        ([(2, 9)], [(1 << 20, 2)], 2, "chunks"),
        ([(1, 9)] * 3, [(0, 2)], 2, "are wrong"),
        ([], [], 1 << 31, "are wrong"),
        ([(1000, 9)], [(0, 1000)], 1000, "are wrong"),
        ([(100, 9)], [(0, 100)], 100, "frame of more than"),
    ],
)
def test_an_index_that_breaks_a_rule_is_refused(
    frames: list[tuple[int, int]], stretches: list[tuple[int, int]], count: int, why: str
) -> None:
    raw = serialize(frames, stretches, count)
    if not why:
        parse_pack_index(raw, MANIFEST)
        return
    with pytest.raises(FormatError, match=why):
        parse_pack_index(raw, MANIFEST)


@pytest.mark.parametrize("size", range(len(INDEX)))
def test_a_torn_index_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        parse_pack_index(INDEX[:size], MANIFEST)


def test_bytes_behind_an_index_are_refused() -> None:
    with pytest.raises(FormatError, match="follow"):
        parse_pack_index(INDEX + b"\0", MANIFEST)


@given(st.binary(max_size=200), st.integers(0, len(INDEX)))
def test_any_bytes_raise_format_errors_only(junk: bytes, at: int) -> None:
    for raw in (junk, INDEX[:at] + junk, INDEX[:at] + junk + INDEX[at + len(junk) :]):
        try:
            parse_pack_index(raw, MANIFEST)
        except FormatError:
            continue


@given(st.data())
def test_a_damaged_frame_raises_refusals_only(data: st.DataObject) -> None:
    index = parse_pack_index(INDEX, MANIFEST)
    frame = data.draw(st.sampled_from(index.frames))
    raw = bytearray(PACK[frame.offset : frame.offset + frame.size])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        list(read_frame(bytes(raw), frame, MANIFEST))
    except (FormatError, IntegrityError):
        return


def test_a_frame_of_other_chunks_is_refused() -> None:
    index = parse_pack_index(INDEX, MANIFEST)
    one, two = index.frames[:2]
    swapped = Frame(one.offset, one.size, one.places[::-1])
    with pytest.raises((ChunkDigestError, FormatError)):
        list(read_frame(PACK[: one.size], swapped, MANIFEST))
    with pytest.raises((ChunkDigestError, FormatError)):
        list(read_frame(PACK[: one.size], two, MANIFEST))

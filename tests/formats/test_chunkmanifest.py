"""formats/chunkmanifest: round trip, golden vector, only FormatError."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from builders import noise
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import chunk_id, sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats import chunkmanifest
from layerkit.formats.chunkmanifest import (
    CHUNK,
    HEADER,
    RUN,
    ChunkManifest,
    build_chunk_manifest,
    cut_form,
    join_runs,
    parse_chunk_manifest,
    parse_root,
    serialize_chunk_manifest,
    serialize_root,
    split_runs,
)

VECTOR = Path(__file__).parent.parent / "vectors" / "chunkmanifest" / "two-chunks.txt"


def _manifest() -> ChunkManifest:
    form = b"a" * 300 + b"b" * 200
    raw_ids = chunk_id(form[:300]).raw + chunk_id(form[300:]).raw
    digest = sha256_digest(form)
    return ChunkManifest("raw", "cdc-v1", digest, 500, digest, 500, (300, 200), raw_ids, 3)


def _vector_bytes() -> bytes:
    text = VECTOR.read_text().partition("\n\n")[2]
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


def test_the_golden_vector_never_changes() -> None:
    assert serialize_chunk_manifest(_manifest()) == _vector_bytes()


def test_the_golden_vector_parses() -> None:
    assert parse_chunk_manifest(_vector_bytes()) == _manifest()


def test_build_then_serialize_then_parse_gives_the_same() -> None:
    form = noise(100_000)
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form), 2)
    assert parse_chunk_manifest(serialize_chunk_manifest(manifest)) == manifest


@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 4000), st.binary(max_size=3000))),
    st.booleans(),
)
def test_ids_of_a_near_form_are_those_that_hashing_gives(
    edits: list[tuple[int, int, bytes]], is_dull: bool
) -> None:
    """Whatever was cut out or put in, and where all chunks have one size."""
    old = bytes(60_000) if is_dull else noise(60_000)
    new = old
    for at, gone, data in edits:
        new = new[:at] + data + new[at + gone :]
    manifests = [
        (form, build_chunk_manifest(form, "raw", sha256_digest(form), len(form)))
        for form in (old, new[: len(new) // 2], b"")
    ]
    assert cut_form(new, near=manifests) == cut_form(new)


def test_chunks_of_a_near_form_are_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise(100_000)
    new = old[:50_000] + b"edited" + old[50_000:]
    manifest, hashed = build_chunk_manifest(old, "raw", sha256_digest(old), len(old)), list[int]()
    monkeypatch.setattr(chunkmanifest, "raw_chunk_id", lambda data: hashed.append(1) or bytes(32))
    cut_form(new, near=[(old, manifest)])
    assert 0 < len(hashed) <= 4


def test_an_empty_form_has_no_chunks() -> None:
    manifest = build_chunk_manifest(b"", "raw", sha256_digest(b""), 0)
    assert parse_chunk_manifest(serialize_chunk_manifest(manifest)).chunks == ()


def test_root_and_runs_are_the_whole() -> None:
    form = noise(300_000)
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    runs = manifest.runs()
    root = serialize_root(manifest, runs)
    assert join_runs(root, [run.data for run in runs]) == serialize_chunk_manifest(manifest)
    assert [name for name, _ in parse_root(root).runs] == [run.id for run in runs]


def test_a_run_that_is_another_one_is_refused() -> None:
    manifest = _manifest()
    root = serialize_root(manifest, manifest.runs())
    for runs in ([], [bytes(2 * CHUNK.size)]):
        with pytest.raises(FormatError):
            join_runs(root, runs)


def test_an_empty_run_is_refused_by_the_root_alone() -> None:
    """Who reads in parts asks for the bytes of each run."""
    raw = bytearray(_vector_bytes())
    raw[16:20] = struct.pack("<I", 2)
    empty = RUN.pack(bytes(32), 0)
    with pytest.raises(FormatError):
        parse_root(bytes(raw[: HEADER.size]) + empty + bytes(raw[HEADER.size :]))


def test_a_whole_is_split_into_its_runs() -> None:
    form = noise(300_000)
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    root, runs = split_runs(raw := serialize_chunk_manifest(manifest))
    assert runs == [run.data for run in manifest.runs()] and len(runs) == len(root.runs)
    with pytest.raises(FormatError):
        split_runs(raw[: len(raw) // 2])


def test_an_edit_changes_few_runs() -> None:
    form = noise(1 << 20)
    new = form[:400_000] + b"one edit" + form[400_000:]
    old_runs, new_runs = (
        {run.id for run in build_chunk_manifest(data, "raw", sha256_digest(data), len(data)).runs()}
        for data in (form, new)
    )
    assert len(old_runs) > 20 and len(new_runs - old_runs) <= 2


def _changed(offset: int, data: bytes) -> bytes:
    raw = bytearray(_vector_bytes())
    raw[offset : offset + len(data)] = data
    return bytes(raw)


BODY = HEADER.size + RUN.size  # one run
BROKEN = {
    "magic": _changed(0, b"X"),
    "short header": _changed(10, struct.pack("<H", HEADER.size - 1)),
    "long header of the same minor": _changed(10, struct.pack("<H", HEADER.size + 1)),
    "count": _changed(12, struct.pack("<I", 3)),
    "huge count": _changed(12, b"\xff" * 4),
    "run count": _changed(16, struct.pack("<I", 2)),
    "huge run count": _changed(16, b"\xff" * 4),
    "role": _changed(20, b"\x09"),
    "name after zero": _changed(24, b"r\0w"),
    "empty name": _changed(24, bytes(16)),
    "name that is not ASCII": _changed(24, b"\xff"),
    "plain size": _changed(88, struct.pack("<Q", 501)),
    "form digest of a raw form": _changed(96, b"\0"),
    "form size": _changed(128, struct.pack("<Q", 1 << 63)),
    "id of a run": _changed(HEADER.size, b"\0"),
    "chunks of a run": _changed(HEADER.size + 32, struct.pack("<I", 1)),
    "zero chunk size": _changed(BODY, bytes(4)),
    "chunk size over its limit": _changed(BODY, struct.pack("<I", 2 << 20)),
    "sum": _changed(BODY, struct.pack("<I", 301)),
    "id of a chunk": _changed(BODY + 4, b"\0"),
    "trailing byte": _vector_bytes() + b"\0",
    "cut": _vector_bytes()[:-1],
    "empty": b"",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_broken_bytes_are_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_chunk_manifest(raw)


def test_an_unknown_major_is_a_version_error() -> None:
    with pytest.raises(VersionError):
        parse_chunk_manifest(_changed(8, b"\x02"))


def test_a_longer_header_of_a_newer_minor_is_skipped() -> None:
    raw = _changed(9, struct.pack("<BH", 1, HEADER.size + 5))
    raw = raw[: HEADER.size] + b"later" + raw[HEADER.size :]
    assert parse_chunk_manifest(raw) == _manifest()


@given(st.data())
def test_mutated_bytes_raise_only_format_error(data: st.DataObject) -> None:
    raw = bytearray(_vector_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        parsed = parse_chunk_manifest(bytes(raw))
    except FormatError:
        return
    assert serialize_chunk_manifest(parsed)[HEADER.size :] == bytes(
        raw[-RUN.size - CHUNK.size * 2 :]
    )

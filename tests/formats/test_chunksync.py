"""formats/chunksync: chunk manifests as changes, chunks by place; only FormatError."""

from __future__ import annotations

from contextlib import suppress

import pytest
from builders import noise
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError
from layerkit.formats.chunkmanifest import (
    ChunkManifest,
    build_chunk_manifest,
    parse_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.chunksync import (
    MAX_PLACES_SIZE,
    Have,
    change_olds,
    chunk_places,
    gone_chunks,
    nothing_known,
    parse_change,
    parse_have,
    parse_places,
    serialize_change,
    serialize_have,
    short_id,
)

OLD = noise(600_000)
NEW = OLD[:300_000] + b"one edited string" + OLD[300_100:]


def _manifest(form: bytes) -> ChunkManifest:
    return build_chunk_manifest(form, "raw", sha256_digest(form), len(form))


RAW_OLD, RAW_NEW = (serialize_chunk_manifest(_manifest(form)) for form in (OLD, NEW))
OLD_DIGEST = sha256_digest(RAW_OLD)
CHANGE = serialize_change(RAW_NEW, {OLD_DIGEST: RAW_OLD})


def test_a_change_of_a_known_chunk_manifest_is_small() -> None:
    assert change_olds(CHANGE) == [OLD_DIGEST]
    assert parse_change(CHANGE, [RAW_OLD], {}, len(RAW_NEW)) == RAW_NEW
    assert len(CHANGE) < len(RAW_NEW) // 20


def test_named_runs_do_not_travel() -> None:
    runs = {run.id: run.data for run in parse_chunk_manifest(RAW_OLD).runs()}
    change = serialize_change(RAW_NEW, {}, map(short_id, runs))
    assert change_olds(change) == []
    assert parse_change(change, [], runs, len(RAW_NEW)) == RAW_NEW
    assert len(change) < len(serialize_change(RAW_NEW, {})) // 3


def test_a_node_of_which_nothing_is_known_is_told() -> None:
    assert change_olds(nothing_known()) is None


def test_a_run_that_only_begins_alike_is_refused() -> None:
    runs = {run.id: run.data for run in parse_chunk_manifest(RAW_NEW).runs()}
    change = serialize_change(RAW_NEW, {}, map(short_id, runs))
    wrong = {name[:8] + bytes(24): data for name, data in runs.items()}
    with pytest.raises(FormatError):
        parse_change(change, [], wrong, len(RAW_NEW))


@pytest.mark.parametrize("want_size", [0, len(RAW_NEW) - 36, len(RAW_NEW) + 36])
def test_a_chunk_manifest_of_another_size_is_refused(want_size: int) -> None:
    with pytest.raises(FormatError):
        parse_change(CHANGE, [RAW_OLD], {}, want_size)


@given(st.data())
def test_mutated_changes_raise_only_format_error(data: st.DataObject) -> None:
    raw = bytearray(CHANGE)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    with suppress(FormatError):
        if change_olds(bytes(raw)) is not None:
            parse_change(bytes(raw), [RAW_OLD], {}, len(RAW_NEW))


def test_what_a_node_holds_comes_back() -> None:
    have = Have((OLD_DIGEST, sha256_digest(b"x")), (bytes(8), b"12345678"))
    assert parse_have(serialize_have(have)) == have


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_a_format_error(raw: bytes) -> None:
    for parse in (parse_have, lambda data: parse_places(data, 1000)):
        with suppress(FormatError):
            parse(raw)


@given(st.sets(st.integers(0, 999), min_size=1))
def test_places_come_back(places: set[int]) -> None:
    assert parse_places(chunk_places(sorted(places)), 1000) == sorted(places)


BAD_PLACES = {
    "none": b"",
    "past the end": chunk_places([1000]),
    "an empty stretch": b"\1\0",
    "a count without end": b"\0\xff\xff\xff\x07",
    "too many": b"\0\1" * MAX_PLACES_SIZE,
}


@pytest.mark.parametrize("raw", BAD_PLACES.values(), ids=BAD_PLACES)
def test_places_that_are_none_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_places(raw, 1000)


def test_gone_chunks_are_those_of_the_old_that_the_new_lacks() -> None:
    old, new = _manifest(OLD), _manifest(NEW)
    held = {Digest("b3", raw) for raw in new.list_raw_ids()}
    gone = list(gone_chunks(old, new))
    assert gone == [(at, chunk.size) for at, chunk in old.spans() if chunk.id not in held]
    assert 0 < len(gone) < 6

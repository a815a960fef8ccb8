"""edges/store: has, get, put, images, gc, verify, many processes."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import noise

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store, rebuild_index
from layerkit.errors import (
    ChunkDigestError,
    IntegrityError,
    NotFoundError,
    StoreError,
    StoreLockedError,
)
from layerkit.formats.chunkmanifest import build_chunk_manifest, serialize_chunk_manifest

CHUNKS = {chunk_id(data): data for data in (noise(size, size) for size in (10, 500, 3000))}
ABSENT = chunk_id(b"absent")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", Disk()) as opened:
        yield opened


def put_image(store: Store, ref: str, form: bytes) -> tuple[Digest, list[Digest]]:
    """A committed image of one chunked layer; returns its digest and chunk ids."""
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    store.put_many((chunk.id, form[at : at + chunk.size]) for at, chunk in manifest.spans())
    listed = store.put_blob(serialize_chunk_manifest(manifest), CHUNK_MANIFEST_KIND)
    top = store.put_blob(f"manifest of {ref}".encode())
    store.commit_image(ref, top, [top, listed])
    return top, [chunk.id for chunk in manifest.chunks]


def rot(store: Store, data: bytes) -> None:
    """Flip one bit of a chunk on disk."""
    for path in (store.path / "packs").iterdir():
        raw = path.read_bytes()
        if data in raw:
            at = raw.index(data)
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])


def test_put_then_has_and_get(store: Store) -> None:
    assert store.put_many(CHUNKS.items()) == 3
    assert store.has([*CHUNKS, ABSENT]) == set(CHUNKS)
    assert {chunk: store.get(chunk) for chunk in CHUNKS} == CHUNKS


def test_what_is_held_is_not_put_again(store: Store) -> None:
    store.put_many(CHUNKS.items())
    assert store.put_many(CHUNKS.items()) == 0
    assert len(os.listdir(store.path / "packs")) == 1


def test_an_absent_chunk_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.get(ABSENT)


def test_a_put_that_fails_leaves_nothing(store: Store) -> None:
    def broken() -> Iterator[tuple[Digest, bytes]]:
        yield from CHUNKS.items()
        raise ValueError

    with pytest.raises(ValueError):
        store.put_many(broken())
    assert store.has(CHUNKS) == set() and os.listdir(store.path / "packs") == []


def test_bit_rot_is_an_error_and_verify_repair_drops_it(store: Store) -> None:
    top, ids = put_image(store, "a:1", noise(20_000))
    data = store.get(ids[3])
    rot(store, data)
    with pytest.raises(ChunkDigestError):
        store.get(ids[3])
    assert store.verify().bad_chunks == (ids[3],) and store.find_image("a:1") == top
    assert store.verify(repair=True).broken_images == ("a:1",)
    assert store.find_image("a:1") is None and store.has(ids) == set(ids) - {ids[3]}


def test_a_lost_pack_is_bit_rot(store: Store) -> None:
    _, ids = put_image(store, "a:1", noise(20_000))
    for path in (store.path / "packs").iterdir():
        path.unlink()
    with pytest.raises(ChunkDigestError):
        Store(store.path, Disk()).get(ids[0])


def test_a_damaged_blob_is_found(store: Store) -> None:
    top, _ = put_image(store, "a:1", noise(20_000))
    with sqlite3.connect(store.path / "index.sqlite") as db:
        db.execute("UPDATE blobs SET data = x'00' WHERE digest = ?", (str(top),))
    with pytest.raises(IntegrityError):
        store.get_blob(top)
    assert store.verify(repair=True).bad_blobs == (top,)


def test_gc_keeps_images_and_drops_the_rest(store: Store) -> None:
    _, ids = put_image(store, "a:1", noise(20_000))
    store.put_many(CHUNKS.items())
    loose = store.put_blob(b"loose")
    result = store.gc()
    assert (result.chunk_count, result.blob_count, result.pack_count) == (3, 1, 1)
    assert store.has(ids) == set(ids) and not store.has(CHUNKS) and not store.has_blob(loose)


def test_gc_dry_run_drops_nothing(store: Store) -> None:
    store.put_many(CHUNKS.items())
    assert store.gc(dry_run=True).chunk_count == 3
    assert store.has(CHUNKS) == set(CHUNKS)


def test_gc_drops_a_removed_image_unless_pinned(store: Store) -> None:
    top, ids = put_image(store, "a:1", noise(20_000))
    store.pin(top)
    store.remove_image("a:1")
    assert store.gc().chunk_count == 0
    store.unpin(top)
    assert store.gc().chunk_count == len(ids)


def test_gc_rewrites_a_pack_that_is_mostly_unused(store: Store) -> None:
    form, other = noise(10_000), noise(90_000, 2)
    waste = {
        chunk_id(other[at : at + 9000]): other[at : at + 9000] for at in range(0, 90_000, 9000)
    }
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    live = [(chunk.id, form[at : at + chunk.size]) for at, chunk in manifest.spans()]
    store.put_many([*live, *waste.items()])
    put_image(store, "a:1", form)
    store.gc()
    sizes = [path.stat().st_size for path in (store.path / "packs").iterdir()]
    assert sum(sizes) < 20_000
    assert b"".join(store.get(chunk) for chunk, _ in live) == form


def test_gc_removes_what_a_crash_left(store: Store) -> None:
    (store.path / "packs" / ".tmp-1").write_bytes(b"half")
    (store.path / "packs" / "nobody.pack").write_bytes(b"LKPACK")
    store.gc()
    assert os.listdir(store.path / "packs") == []


def test_two_gcs_do_not_run_at_once(store: Store) -> None:
    with Disk().lock(store.path / "lock"), pytest.raises(StoreLockedError):
        store.gc()


def test_a_reader_survives_gc_moving_its_chunk(store: Store, tmp_path: Path) -> None:
    test_gc_rewrites_a_pack_that_is_mostly_unused(store)
    with Store(store.path, Disk()) as reader:
        ids = [Digest("b3", row[0]) for row in reader._index.query("SELECT id FROM chunks")]
        assert all(reader.get(chunk) for chunk in ids)


def test_a_damaged_index_is_a_store_error_and_is_made_again(tmp_path: Path) -> None:
    with Store(tmp_path, Disk()) as store:
        store.put_many(CHUNKS.items())
    (tmp_path / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        Store(tmp_path, Disk())
    assert rebuild_index(tmp_path, Disk()) == 3
    with Store(tmp_path, Disk()) as store:
        assert {chunk: store.get(chunk) for chunk in CHUNKS} == CHUNKS


def _put_some(path: str, seed: int) -> None:
    with Store(Path(path), Disk()) as store:
        for step in range(5):
            pairs = [noise(400, seed * 100 + step * 10 + n) for n in range(10)] + [b"shared" * 50]
            store.put_many((chunk_id(data), data) for data in pairs)
        put_image(store, f"a:{seed}", noise(20_000, seed))


def test_processes_may_put_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_put_some, args=(str(tmp_path), n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Store(tmp_path, Disk()) as store:
        result = store.verify()
        assert result.good and result.image_count == 3

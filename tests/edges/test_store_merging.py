"""edges/store: gc joins small packs, bounded, beside those who read and put."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import noise

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store
from layerkit.edges.store.merging import (
    MERGE_COUNT,
    MERGE_SIZE,
    PACK_SIZE,
    PackUse,
    choose_packs,
)
from layerkit.formats.chunkmanifest import build_chunk_manifest, serialize_chunk_manifest

EDIT_SIZE = 2000  # bytes of an edit, each in a pack of its own
BASE = noise(30_000, 99)


@pytest.fixture
def store(quick_path: Path) -> Iterator[Store]:
    with Store(quick_path / "store", Disk()) as opened:
        yield opened


def form_of(edit: int) -> bytes:
    """All versions share the base."""
    return BASE + noise(EDIT_SIZE, edit)


def put_version(store: Store, edit: int) -> Digest:
    form = form_of(edit)
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    store.put_many((chunk.id, form[at : at + chunk.size]) for at, chunk in manifest.spans())
    listed = store.put_blob(serialize_chunk_manifest(manifest), CHUNK_MANIFEST_KIND)
    top = store.put_blob(f"manifest of {edit}".encode())
    store.commit_image(f"a:{edit}", top, [top, listed])
    return top


def read_version(store: Store, edit: int) -> bytes:
    form = form_of(edit)
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    return store.get_all(manifest.list_raw_ids(), manifest.form_digest, "form")


def list_packs(store: Store) -> list[str]:
    names = os.listdir(store.path / "packs")
    assert sorted(names) == sorted(store._chunks.list_packs())
    return names


def test_packs_of_many_edits_become_few(store: Store) -> None:
    for edit in range(40):
        put_version(store, edit)
        if edit % 4 == 0:
            store.gc()
    assert len(list_packs(store)) < 2 * MERGE_COUNT
    assert all(read_version(store, edit) == form_of(edit) for edit in range(40))
    assert store.verify().good and store.find_bad_packs() == []


def test_few_packs_stay_as_they_are(store: Store) -> None:
    for edit in range(MERGE_COUNT - 2):
        put_version(store, edit)
    before = sorted(list_packs(store))
    store.gc()
    assert sorted(list_packs(store)) == before


def test_what_a_living_session_put_stays_where_it_is(store: Store) -> None:
    with Store(store.path, Disk()) as puller, puller.session():
        for edit in range(MERGE_COUNT):
            puller.put_many([(chunk_id(noise(50, edit)), noise(50, edit))])
        before = sorted(list_packs(store))
        store.gc()
        assert sorted(list_packs(store)) == before
    store.gc()
    assert list_packs(store) == []


def test_a_joined_pack_is_no_news_of_the_one_who_joins(store: Store) -> None:
    """An eviction within a pull frees chunks that a gc of that pull has moved."""
    for edit in range(MERGE_COUNT + 1):
        put_version(store, edit)
    with store.session():
        store.gc()
        assert len(list_packs(store)) == 2  # the first one has the base, too
        for edit in range(MERGE_COUNT + 1):
            store.remove_image(f"a:{edit}")
        assert store.gc().chunk_count > MERGE_COUNT
        assert store.usage() == 0 and list_packs(store) == []


def test_eviction_stops_as_soon_as_there_is_room(store: Store) -> None:
    """Within a session of its own, too: what was moved for one victim goes with the next."""
    forms = {f"b:{n}": noise(40_000, n) for n in range(4)}
    shared = [
        (chunk_id(form[at : at + 8000]), form[at : at + 8000])
        for form in forms.values()
        for at in range(0, 40_000, 8000)
    ]
    store.put_many(shared)  # one pack of all
    for number, (ref, form) in enumerate(forms.items()):
        manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
        store.put_many((chunk.id, form[at : at + chunk.size]) for at, chunk in manifest.spans())
        listed = store.put_blob(serialize_chunk_manifest(manifest), CHUNK_MANIFEST_KIND)
        top = store.put_blob(ref.encode())
        store._now = lambda number=number: number  # type: ignore[method-assign,misc]
        store.commit_image(ref, top, [top, listed])
    with store.session():
        assert store.evict(100_000) == ["b:0", "b:1"]
    assert store.usage() <= 100_000


def test_a_damaged_chunk_stays_for_verify(store: Store) -> None:
    for edit in range(MERGE_COUNT + 1):
        put_version(store, edit)
    pack = store.path / "packs" / store._chunks.list_packs()[3]
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    store.gc()
    assert len(list_packs(store)) == 3  # with the base, joined, damaged
    found = store.verify(repair=True)
    assert found.bad_chunks and set(found.broken_images) == {"a:3"}


def test_what_is_dropped_meanwhile_does_not_come_back(store: Store) -> None:
    ids = []
    for edit in range(3):
        data = noise(500, edit)
        ids.append(chunk_id(data))
        store.put_many([(ids[-1], data)])
    get, chunks = store._chunks.get, store._chunks

    def drop_then_get(chunk: Digest) -> bytes:
        data = get(chunk)
        if chunk == ids[1]:
            with Store(store.path, Disk()) as other:
                other.drop([chunk])
        return data

    chunks.get = drop_then_get  # type: ignore[method-assign]
    chunks.rewrite([1, 2, 3], "gc")
    assert store.has(ids) == {ids[0], ids[2]}
    assert len(list_packs(store)) == 1


def test_readers_go_on_while_packs_are_joined(store: Store) -> None:
    for edit in range(3 * MERGE_COUNT):
        put_version(store, edit)
    stop, failed, count = threading.Event(), [], [0]

    def read() -> None:
        with Store(store.path, Disk()) as reader:
            while not stop.is_set():
                edit = count[0] % (3 * MERGE_COUNT)
                try:
                    assert read_version(reader, edit) == form_of(edit)
                except BaseException as exc:
                    failed.append(exc)
                    return
                count[0] += 1

    thread = threading.Thread(target=read)
    thread.start()
    for edit in range(100, 108):
        put_version(store, edit)
        store.gc()
    stop.set()
    thread.join()
    assert not failed and count[0] > 0


# --- which packs ---------------------------------------------------------------------------------


def uses(*sizes: int) -> list[PackUse]:
    return [PackUse(number, size, size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([1000] * (MERGE_COUNT - 1), 0),
        ([1000] * MERGE_COUNT, MERGE_COUNT),
        ([1000] * (MERGE_COUNT - 1) + [100_000], 0),  # of another class
        ([1000] * MERGE_COUNT + [100_000] * MERGE_COUNT, 2 * MERGE_COUNT),
        ([5 << 20] * 100, 0),
    ],
    ids=["too-few", "enough", "other-class", "two-classes", "large"],
)
def test_packs_of_one_class_are_joined(sizes: list[int], chosen: int) -> None:
    assert sum(map(len, choose_packs(uses(*sizes), join=True))) == chosen
    assert choose_packs(uses(*sizes), join=False) == []


def test_the_work_of_one_gc_is_bounded() -> None:
    groups = choose_packs(uses(*[3 << 20] * 1000), join=True)
    assert MERGE_COUNT <= sum(map(len, groups)) <= MERGE_SIZE // (3 << 20)
    assert all(len(group) * (3 << 20) < PACK_SIZE + (3 << 20) for group in groups)


def test_unused_packs_are_written_anew_whatever_their_size() -> None:
    packs = [PackUse(1, 100 << 20, 49 << 20), PackUse(2, 100, 0), PackUse(3, 100, 60)]
    assert choose_packs(packs, join=False) == [[1]]


def test_a_chunk_is_copied_a_few_times_however_many_edits_come() -> None:
    """The packs as gc after gc finds them; each edit leaves one of 3 KB."""
    packs: list[PackUse] = []
    copied = 0
    for number in range(5000):
        packs.append(PackUse(10 * number, 3000, 3000))
        for group in choose_packs(packs, join=True):
            size = sum(one.size for one in packs if one.pack in group)
            copied += size
            packs = [one for one in packs if one.pack not in group]
            packs.append(PackUse(group[-1] + 1, size, size))
    assert len(packs) < 4 * MERGE_COUNT and copied <= 4 * 5000 * 3000

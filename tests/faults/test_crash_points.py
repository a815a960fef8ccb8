"""Every crash point of all that writes to a store: what was committed reads, and no more."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image
from faulty_disk import CrashError, FaultyDisk

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.rootfs import extract_layers
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store
from layerkit.edges.store.merging import MERGE_COUNT
from layerkit.errors import StoreError, StoreFullError
from layerkit.formats.chunkmanifest import build_chunk_manifest, serialize_chunk_manifest
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull
from layerkit.jobs.serve import start
from layerkit.jobs.verify import verify_store

OLD, NEW = noise(6000, 1), noise(6000, 2)


def put_image(store: Store, ref: str, form: bytes) -> Digest:
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    store.put_many((chunk.id, form[at : at + chunk.size]) for at, chunk in manifest.spans())
    listed = store.put_blob(serialize_chunk_manifest(manifest), CHUNK_MANIFEST_KIND)
    top = store.put_blob(f"manifest of {ref}".encode())
    store.commit_image(ref, top, [top, listed])
    return top


def read_image(store: Store, ref: str, form: bytes) -> bool:
    """Is `ref` committed? Then it must read whole."""
    if store.find_image(ref) is None:
        return False
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    assert b"".join(store.get(chunk.id) for chunk in manifest.chunks) == form
    return True


def check_after_crash(path: Path) -> bool:
    with Store(path, Disk()) as store:
        assert read_image(store, "a:1", OLD), "what was committed before the crash is lost"
        done = read_image(store, "a:2", NEW)
        assert store.verify().good
        store.gc()
        assert not [name for name in (path / "packs").iterdir() if name.name.startswith(".tmp")]
        assert read_image(store, "a:1", OLD)
        put_image(store, "a:2", NEW)
        assert read_image(store, "a:2", NEW), "the next pull does not finish"
    return done


def count_steps(path: Path) -> int:
    disk = FaultyDisk()
    with Store(path, Disk()) as store:
        put_image(store, "a:1", OLD)
    with Store(path, disk) as store:
        put_image(store, "a:2", NEW)
    return disk.count


@pytest.mark.parametrize("mode", ["stop", "torn", "lose"])
def test_every_crash_point_of_put_and_commit(tmp_path: Path, mode: str) -> None:
    steps = count_steps(tmp_path / "count")
    done = []
    for stop_at in range(1, steps + 2):
        path = tmp_path / str(stop_at)
        with Store(path, Disk()) as store:
            put_image(store, "a:1", OLD)
        disk = FaultyDisk(stop_at, torn=mode == "torn", lose=mode == "lose")
        store = Store(path, disk)
        with contextlib.suppress(CrashError):
            put_image(store, "a:2", NEW)
        store.close()
        disk.lose_unsynced()
        done.append(check_after_crash(path))
    assert steps >= 7 and done == [False] * steps + [True]


def test_every_crash_point_of_gc(tmp_path: Path) -> None:
    stop_at, ended = 0, False
    while not ended:
        stop_at += 1
        path = tmp_path / str(stop_at)
        with Store(path, Disk()) as store:
            put_image(store, "a:1", OLD)
            put_image(store, "a:3", NEW + OLD)
            store.remove_image("a:3")
        store = Store(path, FaultyDisk(stop_at))
        try:
            store.gc()
            ended = True
        except CrashError:
            pass
        store.close()
        check_after_crash(path)
    assert stop_at > 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stop", "torn", "lose"])
def test_every_crash_point_of_joining_packs(quick_path: Path, mode: str) -> None:
    forms = {f"b:{number}": noise(700, number) for number in range(MERGE_COUNT)}
    with Store(quick_path / "full", Disk()) as store:
        for ref, form in forms.items():
            put_image(store, ref, form)
        put_image(store, "a:1", OLD)
    stop_at, ended = 0, False
    while not ended:
        stop_at += 1
        path = quick_path / str(stop_at)
        shutil.copytree(quick_path / "full", path)
        disk = FaultyDisk(stop_at, torn=mode == "torn", lose=mode == "lose")
        store = Store(path, disk)
        try:
            store.gc()
            ended = True
        except CrashError:
            pass
        store.close()
        disk.lose_unsynced()
        with Store(path, Disk()) as store:
            assert all(read_image(store, *pair) for pair in forms.items())
            assert store.verify().good and store.find_bad_packs() == []
            store.gc()
            assert sorted(os.listdir(path / "packs")) == sorted(store._chunks.list_packs())
            assert len(store._chunks.list_packs()) == 1
        check_after_crash(path)
        shutil.rmtree(path)
    assert stop_at > MERGE_COUNT + 5  # each old pack is removed in a step of its own


def fill(store: Store) -> None:
    """What is committed before the crash, and something to drop, move and evict."""
    put_image(store, "a:1", OLD)
    put_image(store, "a:3", NEW + noise(60_000, 3))
    put_image(store, "a:4", OLD + noise(20_000, 4))
    store.remove_image("a:3")
    store.pin(store.find_image("a:1") or Digest("sha256", bytes(32)))


def rot_and_repair(path: Path, disk: Disk) -> None:
    for pack in sorted((path / "packs").iterdir()):
        data = bytearray(pack.read_bytes())
        if noise(60_000, 3)[:100] in data:
            data[60] ^= 1  # of what nobody needs: all images stay whole
            pack.write_bytes(data)
    verify_store(path, disk, repair=True)


def lose_index(path: Path, disk: Disk) -> None:
    with sqlite3.connect(path / "index.sqlite") as db:
        db.execute("PRAGMA user_version = 9")
    verify_store(path, disk, repair=True)


def evict(path: Path, disk: Disk) -> None:
    with Store(path, disk) as store:
        store.evict(20_000)


def put_over_quota(path: Path, disk: Disk) -> None:
    with Store(path, disk, 80_000) as store:
        put_image(store, "a:5", noise(50_000, 5))


def migrate(path: Path, disk: Disk) -> None:
    """A store of schema 1 is opened."""
    with sqlite3.connect(path / "index.sqlite") as db:
        for table in ("facts", "claims", "uses"):
            db.execute(f"DROP TABLE {table}")
        for table, column in (
            ("packs", "session"),
            ("blobs", "session"),
            ("images", "used_at"),
            ("images", "seal"),
        ):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 1")
    Store(path, disk).close()


def check_whole(path: Path) -> None:
    """The committed image reads, what the index says is there, and the next work goes on."""
    with contextlib.suppress(StoreError):
        Store(path, Disk()).close()
    if not verify_store(path, Disk(), repair=True).good:
        assert verify_store(path, Disk()).good  # a repair that was cut goes on
    with Store(path, Disk()) as store:
        assert read_image(store, "a:1", OLD)
        for image in store.list_images():
            assert store.find_image(image.ref) is not None
        store.gc()
        names = os.listdir(path / "packs")
        assert sorted(names) == sorted(store._chunks.list_packs())
        assert not [name for name in os.listdir(path) if name.startswith(".tmp-")]
        assert os.listdir(path / "sessions") == []
        put_image(store, "a:2", NEW)
        assert read_image(store, "a:2", NEW) and read_image(store, "a:1", OLD)
    assert verify_store(path, Disk()).good


JOBS = [
    rot_and_repair,
    pytest.param(lose_index, marks=pytest.mark.slow),  # six seconds
    evict,
    pytest.param(put_over_quota, marks=pytest.mark.slow),
    migrate,
]


SLOW_MODES = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("lose", "error")]


@pytest.mark.parametrize("mode", ["stop", *SLOW_MODES])
@pytest.mark.parametrize("job", JOBS)
def test_every_crash_point_of_other_work(
    quick_path: Path, job: Callable[[Path, Disk], None], mode: str
) -> None:
    with Store(quick_path / "full", Disk()) as store:
        fill(store)
    stop_at, ended = 0, False
    while not ended:
        stop_at += 1
        path = quick_path / str(stop_at)
        shutil.copytree(quick_path / "full", path)
        number = errno.ENOSPC if mode == "error" else 0
        disk = FaultyDisk(stop_at, lose=mode == "lose", error=number)
        with contextlib.suppress(CrashError, StoreError):
            job(path, disk)
        ended = disk.count < stop_at
        gc.collect()  # what the crash left open is closed, as by a kernel
        disk.lose_unsynced()
        check_whole(path)
        shutil.rmtree(path)
    assert stop_at >= 2


@pytest.mark.parametrize("tag", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_every_crash_point_of_pulls(quick_path: Path, tag: str) -> None:
    """A first pull, and an update, from a real server."""
    layout = quick_path / "layout"
    for name, seed in (("v1", 1), ("v2", 2)):
        publish_image(layout, f"a:{name}", hello_files(noise(30_000, 9) + noise(2000, seed)))
    tops = {}
    with start(layout) as running:

        def pull_one(path: Path, disk: Disk, tag: str) -> None:
            with Remote(running.url) as remote, Store(path, disk) as store:
                tops[tag] = pull(Reference.parse(f"a:{tag}"), remote, store).digest

        pull_one(quick_path / "old", Disk(), "v1")
        stop_at, ended = 0, False
        while not ended:
            stop_at += 1
            path = quick_path / str(stop_at)
            if tag == "v2":
                shutil.copytree(quick_path / "old", path)
            with contextlib.suppress(CrashError):
                pull_one(path, FaultyDisk(stop_at), tag)
                ended = True
            gc.collect()
            if path.exists():
                assert verify_store(path, Disk()).good
            if tag == "v2":
                with Store(path, Disk()) as store:
                    assert store.find_image("a:v1") == tops["v1"]
            pull_one(path, Disk(), tag)
            with Store(path, Disk()) as store:
                assert store.find_image(f"a:{tag}") == tops[tag] and store.verify().good
        assert stop_at > 5


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StoreFullError), (errno.EROFS, StoreError), (errno.EIO, StoreError)],
)
def test_a_disk_error_at_any_step_is_clear_and_leaves_the_store_usable(
    tmp_path: Path, number: int, kind: type[StoreError]
) -> None:
    for stop_at in range(1, count_steps(tmp_path / "count") + 1):
        path = tmp_path / str(stop_at)
        with Store(path, Disk()) as store:
            put_image(store, "a:1", OLD)
        with Store(path, FaultyDisk(stop_at, error=number)) as store:
            with pytest.raises(kind):
                put_image(store, "a:2", NEW)
            assert store.find_image("a:1") is not None
        check_after_crash(path)


def test_every_crash_point_of_an_extraction_leaves_old_or_nothing(tmp_path: Path) -> None:
    tar = build_tar([Entry("app/hello", b"new"), Entry("etc/passwd", b"x")])
    stop_at = 0
    while True:
        stop_at += 1
        target = tmp_path / str(stop_at) / "root"
        try:
            extract_layers([tar], target, FaultyDisk(stop_at))
            break
        except CrashError:
            if target.exists():
                assert (target / "app/hello").read_bytes() == b"new"
    assert stop_at > 8

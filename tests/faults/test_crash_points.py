"""Every crash point of a put and commit, and of a gc: what was committed reads, no more."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
from builders import noise
from faulty_disk import CrashError, FaultyDisk

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.rootfs import extract_layers
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store
from layerkit.errors import StoreError, StoreFullError
from layerkit.formats.chunkmanifest import build_chunk_manifest, serialize_chunk_manifest
from layerkit.formats.layer import Entry, build_tar

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

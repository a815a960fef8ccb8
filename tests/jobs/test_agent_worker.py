"""The agent's jobs on a real store and real folders, stopped at every step of the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import hello_files, noise, publish_image
from faults.faulty_disk import CrashError, FaultyDisk

from layerkit.digest import Digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.http import RunningServer
from layerkit.edges.layout import Layout
from layerkit.edges.spares import Spares
from layerkit.edges.store import Store
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.work import Place
from layerkit.jobs.agent.worker import run_job
from layerkit.jobs.serve import start

HELLO = "hello:latest"
BODY = noise(30_000)


def publish(layout: Path, number: int) -> Digest:
    return publish_image(layout, HELLO, hello_files(BODY + b"%d" % number)).digest


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    publish(tmp_path / "layout", 1)
    return tmp_path / "layout"


@pytest.fixture
def server(layout: Path) -> Iterator[RunningServer]:
    with start(layout) as running:
        yield running


def job(node: Path, do: str, kind: str = "rootfs", **facts: Any) -> dict[str, Any]:
    place = Place(str(node / "store"), 0, kind, str(node / "root"), (), "linux/amd64", "")
    return {"do": do, "place": place.as_document(), "ref": HELLO, "link": "current", **facts}


def pull(node: Path, url: str, disk: Disk | None = None, kind: str = "rootfs") -> dict[str, Any]:
    servers = [{"url": url, "token": ""}]
    return dict(run_job(job(node, "pull", kind, servers=servers), disk))


def make_spare(node: Path, url: str) -> None:
    servers = [{"url": url, "token": ""}]
    assert run_job(job(node, "spare", servers=servers)) == {"made": True}


def sweep(node: Path, *versions: Digest, kind: str = "rootfs") -> dict[str, Any]:
    names = [{"ref": HELLO, "link": "current", "versions": [str(one) for one in versions]}]
    return dict(run_job(job(node, "sweep", kind, names=names)))


def current(node: Path) -> bytes:
    """The binary that the link leads to, in a tree that is whole."""
    tree = node / "root" / "hello" / "current"
    assert (tree / "etc" / "ssl" / "certs.pem").stat().st_size == 20_000
    return (tree / "app" / "hello").read_bytes()


def check_crash(stopped_at: int, tmp_path: Path, url: str, old: Digest, new: Digest) -> bool:
    """A pull of the new version stopped at that step, and a new agent after it. False when the pull
    has no such step."""
    node = tmp_path / "node"
    shutil.rmtree(node, ignore_errors=True)
    shutil.copytree(tmp_path / "before", node, symlinks=True)
    disk = FaultyDisk(stopped_at, torn=True, lose=True)
    try:
        pull(node, url, disk)
        return False
    except CrashError:
        disk.lose_unsynced()
    assert current(node) in (BODY + b"1", BODY + b"2"), f"step {stopped_at}"
    sweep(node, old)  # the record knows of the old version only
    assert current(node) in (BODY + b"1", BODY + b"2"), f"step {stopped_at}"
    with Store(node / "store", Disk()) as store:
        versions = {image.digest for image in store.list_images() if "@" in image.ref}
    assert versions <= {old, new} and (new not in versions or current(node) == BODY + b"2")
    left = [path for path in (node / "root").rglob("*") if path.name.startswith(TEMP_PREFIX)]
    assert left == [], f"step {stopped_at}"
    assert pull(node, url)["digest"] == str(new)
    assert current(node) == BODY + b"2", f"step {stopped_at}"
    with Store(node / "store", Disk()) as store:
        assert store.verify().good, f"step {stopped_at}"
    return True


def prepare(tmp_path: Path, layout: Path, server: RunningServer) -> tuple[Digest, Digest]:
    old = Layout(layout).resolve(Reference.parse(HELLO)).digest
    assert pull(tmp_path / "before", server.url)["digest"] == str(old)
    make_spare(tmp_path / "before", server.url)
    return old, publish(layout, 2)


@pytest.mark.slow
def test_a_pull_stopped_at_any_step_leaves_old_or_new(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    old, new = prepare(tmp_path, layout, server)
    step = 1
    while check_crash(step, tmp_path, server.url, old, new):
        step += 1
    assert step > 25  # or nothing was tried


@pytest.mark.parametrize("step", [12, 20, 26])
def test_a_pull_stopped_at_some_steps_leaves_old_or_new(
    step: int, tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    old, new = prepare(tmp_path, layout, server)
    assert check_crash(step, tmp_path, server.url, old, new)


def test_layouts_have_the_published_digests(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    digest = pull(tmp_path, server.url, kind="layout")["digest"]
    found = Layout(tmp_path / "root" / "hello" / "current")
    assert str(found.resolve(Reference.parse(HELLO)).digest) == digest
    for blob in found.read_manifest(Digest.parse(digest)).layers:
        assert found.read_blob(blob)


def test_an_old_version_stays_in_the_store_when_the_tag_moves_on(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    old, new = prepare(tmp_path, layout, server)
    node = tmp_path / "before"
    pull(node, server.url)
    run_job(job(node, "gc"))
    with Store(node / "store", Disk()) as store:
        assert store.is_complete(old) and store.is_complete(new)
        assert store.verify().good
    versions = [{"digest": str(old), "config": "", "manifest": ""}]
    run_job(job(node, "remove", versions=versions, shared=[], whole=False))
    run_job(job(node, "gc"))
    with Store(node / "store", Disk()) as store:
        assert not store.is_complete(old)
    assert current(node) == BODY + b"2"


def test_a_server_that_has_it_not_is_passed_over(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    publish_image(tmp_path / "other", "else:v1", hello_files(b"x"))
    with start(tmp_path / "other") as other:
        servers = [{"url": url, "token": ""} for url in (other.url, server.url)]
        found = run_job(job(tmp_path, "pull", servers=servers))
        assert found["server"] == server.url


def test_sweep_says_what_must_be_pulled_again(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    digest = Digest.parse(pull(tmp_path, server.url)["digest"])
    assert sweep(tmp_path, digest)["names"] == {HELLO: str(digest)}
    shutil.rmtree((tmp_path / "root" / "hello" / "current").resolve())
    assert sweep(tmp_path, digest)["names"] == {HELLO: ""}
    assert pull(tmp_path, server.url)["digest"] == str(digest)
    shutil.rmtree(tmp_path / "store")
    assert sweep(tmp_path, digest)["names"] == {HELLO: ""}


def test_a_spare_tree_becomes_the_next_version(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    """Its files are not written again: they keep their inodes."""
    first = pull(tmp_path, server.url)
    assert first["wants_spare"]
    make_spare(tmp_path, server.url)
    (spare,) = (tmp_path / "root" / ".tmp-spares").glob("*-*")
    inode = (spare / "etc" / "passwd").stat().st_ino
    assert not (spare / "app").exists()
    new = publish(layout, 2)
    second = pull(tmp_path, server.url)
    assert (second["digest"], second["wants_spare"]) == (str(new), True)
    tree = (tmp_path / "root" / "hello" / "current").resolve()
    assert (tree / "etc" / "passwd").stat().st_ino == inode
    assert current(tmp_path) == BODY + b"2"
    assert tree.stat().st_mode & 0o777 == 0o755


def test_a_spare_form_is_what_the_next_update_is_made_from(
    tmp_path: Path, layout: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a damaged one is as if it were not there."""
    reads = []
    read = Spares.read_form

    def watched(spares: Spares, digest: Digest) -> bytes | None:
        found = read(spares, digest)
        reads.append(found is not None)
        return found

    monkeypatch.setattr(Spares, "read_form", watched)
    for number, damage in ((2, False), (3, True)):
        pull(tmp_path, server.url)
        make_spare(tmp_path, server.url)
        for path in (tmp_path / "root" / ".tmp-spares").glob("*.form"):
            path.write_bytes(b"" if damage else path.read_bytes())
        publish(layout, number)
        pull(tmp_path, server.url)
        assert current(tmp_path) == BODY + b"%d" % number
    assert reads == [True, False]


def test_other_lower_layers_take_no_spare_of_these(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    pull(tmp_path, server.url)
    make_spare(tmp_path, server.url)
    files = hello_files(BODY + b"3")
    files["base"]["etc/passwd"] = b"root:x:0:0:other\n"
    publish_image(layout, HELLO, files)
    pull(tmp_path, server.url)
    tree = tmp_path / "root" / "hello" / "current"
    assert (tree / "etc" / "passwd").read_bytes() == b"root:x:0:0:other\n"
    assert current(tmp_path) == BODY + b"3"


def test_eviction_spares_what_is_current(
    tmp_path: Path, layout: Path, server: RunningServer
) -> None:
    old, new = prepare(tmp_path, layout, server)
    node = tmp_path / "before"
    pull(node, server.url)
    with Store(node / "store", Disk()) as store:
        used = store.usage()
    full = job(node, "evict", keep=[str(new)])
    full["place"]["quota"] = used  # three quarters of that are to stay in use at most
    assert run_job(full) == {"removed": [f"{HELLO}@{old}"]}
    with Store(node / "store", Disk()) as store:
        assert store.is_complete(new) and not store.is_complete(old)

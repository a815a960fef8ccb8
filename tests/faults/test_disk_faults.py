"""Disks that fail: a real one that fills up or turns read-only beneath a pull, SQLite's files too.

The small disk is a tmpfs, or ext4 in a file, in a mount namespace of its own (`unshare -m`), with
the test's steps run in it by a script; nothing is mounted outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDS_EXT4 = pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="no mkfs.ext4")
PRELUDE = """
import os, subprocess, sys
from pathlib import Path
sys.path[:0] = [{here!r}, {tests!r}]
from builders import noise
from test_crash_points import put_image, read_image
from layerkit.edges.disk import Disk
from layerkit.edges.store import Store
from layerkit.errors import StoreError, StoreFullError
from layerkit.jobs.verify import verify_store
mount = Path({mount!r})

def remount(options):
    subprocess.run(["mount", "-o", "remount," + options, str(mount)], check=True)

def left_over():
    packs = [name for name in os.listdir(mount / "s/packs") if name.startswith(".tmp")]
    return packs + os.listdir(mount / "s/sessions")

OLD, NEW = noise(40_000, 1), noise(700_000, 2)
"""
FILL = """
import contextlib, shutil
said = set()
for size in range(*{ballasts}):
    with Store(mount / "s", Disk()) as store:
        put_image(store, "a:1", OLD)
    ballast = mount / "ballast"
    with contextlib.suppress(OSError):  # a disk that is quite full is among the cases
        ballast.write_bytes(bytes(size))
    try:
        with Store(mount / "s", Disk()) as store:
            put_image(store, "a:2", NEW)
        said.add("fits")
    except StoreFullError as exc:
        assert exc.exit_status == 7 and exc.code == "STORE_FULL", exc
        said.add("full")
    assert left_over() == [], left_over()
    try:
        with Store(mount / "s", Disk()) as store:
            assert read_image(store, "a:1", OLD)
    except StoreFullError:
        said.add("no room to read")  # SQLite's shared memory needs 32 KiB
    ballast.unlink()
    assert verify_store(mount / "s", Disk()).good
    with Store(mount / "s", Disk()) as store:
        store.gc()
        put_image(store, "a:2", NEW)
        assert read_image(store, "a:2", NEW)
    shutil.rmtree(mount / "s")
print(*sorted(said))
"""
# ext4's own emergency stop: from there on the disk answers everything with an I/O error
FAIL = """
import fcntl
image = str(mount.parent / "disk.img")
for step in range(*{steps}):
    with Store(mount / "s", Disk()) as store:
        put_image(store, "a:1", OLD)

    class Failing(Disk):
        count = 0
        def act(self, op, path, call):
            self.count += 1
            if self.count == step:
                fd = os.open(mount, os.O_RDONLY)
                fcntl.ioctl(fd, 0x8004587D, (2).to_bytes(4, "little"))  # EXT4_IOC_SHUTDOWN
                os.close(fd)
            return super().act(op, path, call)

    disk = Failing()
    try:
        with Store(mount / "s", disk) as store:
            put_image(store, "a:2", NEW)
        print("done", end=" ")
    except StoreError as exc:
        assert exc.exit_status == 7, exc
        print("refused", end=" ")
    if disk.count >= step:
        subprocess.run(["umount", str(mount)], check=True)
        subprocess.run(["mount", "-o", "loop", image, str(mount)], check=True)
    with Store(mount / "s", Disk()) as store:
        assert read_image(store, "a:1", OLD)
        store.gc()
        assert left_over() == [], left_over()
        put_image(store, "a:2", NEW)
        assert read_image(store, "a:2", NEW)
        store.remove_image("a:2")
        store.gc()
    assert verify_store(mount / "s", Disk()).good
"""
READ_ONLY = """
with Store(mount / "s", Disk()) as store:
    put_image(store, "a:1", OLD)
remount("ro")
try:
    with Store(mount / "s", Disk()) as store:
        put_image(store, "a:2", NEW)
except StoreError as exc:
    assert exc.exit_status == 7 and "must be writable" in exc.hint, exc
    print("refused")
remount("rw")
with Store(mount / "s", Disk()) as store:
    assert read_image(store, "a:1", OLD)
    put_image(store, "a:2", NEW)
assert verify_store(mount / "s", Disk()).good
"""


def run_on_small_disk(mount: Path, script: str, size: str, disk: str = "tmpfs") -> str:
    """What the script says that runs with a disk of that size at `mount`."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mounting in a namespace of its own needs root and unshare")
    mount.mkdir()
    if disk == "tmpfs":
        attach = f"mount -t tmpfs -o size={size} none {mount}"
    else:
        image = mount.parent / "disk.img"
        subprocess.run(["truncate", "-s", size, image], check=True)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        attach = f"mount -o loop {image} {mount}"
    prelude = PRELUDE.format(here=str(HERE), tests=str(HERE.parent), mount=str(mount))
    path = mount.parent / "script.py"
    path.write_text(prelude + script)
    shell = f"mount --make-rprivate / && {attach} || exit 77; exec {sys.executable} {path}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_full_disk_is_clear_and_leaves_the_store_usable(tmp_path: Path) -> None:
    script = FILL.format(ballasts=(1_000_000, 2_000_000, 390_000))
    assert run_on_small_disk(tmp_path / "mount", script, "2m") == "fits full\n"


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_point(tmp_path: Path) -> None:
    """Each block less ends the work a step earlier, SQLite's steps among them."""
    script = FILL.format(ballasts=(1_000_000, 2_000_000, 8192))
    assert run_on_small_disk(tmp_path / "mount", script, "2m").startswith("fits full")


@NEEDS_EXT4
def test_a_disk_that_fails_in_the_middle(tmp_path: Path) -> None:
    script = FAIL.format(steps=(5, 15, 4))
    assert "refused" in run_on_small_disk(tmp_path / "mount", script, "16m", "ext4")


@pytest.mark.slow
@NEEDS_EXT4
def test_a_disk_that_fails_at_any_point(tmp_path: Path) -> None:
    said = run_on_small_disk(tmp_path / "mount", FAIL.format(steps=(1, 40)), "16m", "ext4")
    assert "refused" in said and "done" in said


def test_a_read_only_disk(tmp_path: Path) -> None:
    assert run_on_small_disk(tmp_path / "mount", READ_ONLY, "8m") == "refused\n"

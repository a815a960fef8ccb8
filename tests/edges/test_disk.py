"""edges/disk: whole and durable, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layerkit.edges.disk import TEMP_PREFIX, Disk, map_os_error
from layerkit.errors import NotFoundError, StoreError, StoreFullError, StoreLockedError


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    Disk().write_atomic(tmp_path / "f", b"old and longer")
    Disk().write_atomic(tmp_path / "f", b"new", 0o600)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    with Disk().open_new(tmp_path / "f") as file:
        file.write(b"half")
        assert [name[: len(TEMP_PREFIX)] for name in os.listdir(tmp_path)] == [TEMP_PREFIX]
    assert os.listdir(tmp_path) == []


def test_append_adds_at_the_end(tmp_path: Path) -> None:
    Disk().append(tmp_path / "f", b"one ")
    Disk().append(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"one two"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EROFS, StoreError),
        (errno.EIO, StoreError),
        (errno.ENOENT, NotFoundError),
    ],
)
def test_os_errors_become_ours(number: int, kind: type[Exception]) -> None:
    assert type(map_os_error(OSError(number, os.strerror(number)), "write", "f")) is kind


def test_os_errors_are_chained(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        Disk().write_atomic(tmp_path / "none" / "f", b"")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_full_disk_is_a_full_store() -> None:
    with pytest.raises(StoreFullError):
        fd = os.open("/dev/full", os.O_WRONLY)
        try:
            Disk().write_fd(fd, memoryview(b"x"), "full")
        finally:
            os.close(fd)


def test_a_taken_lock_is_an_error(tmp_path: Path) -> None:
    disk = Disk()
    with disk.lock(tmp_path / "l"), pytest.raises(StoreLockedError), disk.lock(tmp_path / "l"):
        pass


def test_shared_locks_go_together_and_are_given_back(tmp_path: Path) -> None:
    disk = Disk()
    with disk.lock(tmp_path / "l", shared=True), disk.lock(tmp_path / "l", shared=True):
        pass
    with disk.lock(tmp_path / "l"):
        pass


def test_remove_says_whether_there_was_something(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert [Disk().remove(tmp_path / "f"), Disk().remove(tmp_path / "f")] == [True, False]


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").touch()
    Disk().make_folder(tmp_path / "tree" / "deep")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "tree" / "deep" / "f").touch()
    Disk().remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists() and (tmp_path / "kept" / "f").exists()


def test_exchange_folder_replaces_an_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    Disk().exchange_folder(tmp_path / "new", tmp_path / "old")
    assert [os.listdir(tmp_path), os.listdir(tmp_path / "old")] == [["old"], ["new"]]

"""Folders of versions and their links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerkit.digest import sha256_digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.versions import VersionFolders
from layerkit.errors import NotFoundError, StoreError
from layerkit.formats.reference import Reference

HELLO = Reference.parse("team/hello:v1")
ONE, TWO = sha256_digest(b"1"), sha256_digest(b"2")


@pytest.fixture
def folders(tmp_path: Path) -> VersionFolders:
    return VersionFolders(tmp_path / "root", Disk())


def add(folders: VersionFolders, ref: Reference, digest: object, text: str) -> None:
    with folders.staging(ref) as staging:
        (staging / "made").mkdir()
        (staging / "made" / "file").write_text(text)
        folders.publish(ref, digest, staging / "made")  # type: ignore[arg-type]


def test_the_link_moves_from_version_to_version(folders: VersionFolders) -> None:
    for digest, text in ((ONE, "one"), (TWO, "two")):
        add(folders, HELLO, digest, text)
        folders.point(HELLO, "current", digest)
        assert (folders.root / "team/hello/current/file").read_text() == text
        assert folders.find_current(HELLO, "current") == digest
    assert not os.path.isabs(os.readlink(folders.root / "team/hello/current"))


def test_a_version_that_is_there_is_not_replaced(folders: VersionFolders) -> None:
    add(folders, HELLO, ONE, "one")
    add(folders, HELLO, ONE, "another")
    assert (folders.path(HELLO, ONE) / "file").read_text() == "one"


def test_a_link_leads_to_nothing_that_is_not_there(folders: VersionFolders) -> None:
    with pytest.raises(NotFoundError):
        folders.point(HELLO, "current", ONE)
    add(folders, HELLO, ONE, "one")
    (folders.folder(HELLO) / "current").mkdir()
    with pytest.raises(StoreError):
        folders.point(HELLO, "current", ONE)


def test_a_foreign_link_is_not_followed(folders: VersionFolders, tmp_path: Path) -> None:
    add(folders, HELLO, ONE, "one")
    (folders.folder(HELLO) / "current").symlink_to(tmp_path)
    assert folders.find_current(HELLO, "current") is None
    folders.point(HELLO, "current", ONE)
    assert folders.find_current(HELLO, "current") == ONE


def test_sweep_takes_what_a_crash_left_and_nothing_else(folders: VersionFolders) -> None:
    other, three = Reference.parse("team:v1"), sha256_digest(b"3")
    for ref, digest in ((HELLO, ONE), (HELLO, TWO), (HELLO, three), (other, ONE)):
        add(folders, ref, digest, "x")
    folders.point(HELLO, "current", TWO)
    (folders.folder(HELLO) / f"{TEMP_PREFIX}1").mkdir()
    (folders.folder(HELLO) / f"{TEMP_PREFIX}2").symlink_to("nowhere")
    (folders.folder(HELLO) / "notes.txt").write_text("somebody's")
    assert folders.sweep(HELLO, {ONE}) == 3
    left = {path.name for path in folders.folder(HELLO).iterdir()}
    names = {folders.path(HELLO, digest).name for digest in (ONE, TWO)}
    assert left == {"current", "notes.txt", *names}
    assert folders.sweep(other, {ONE}) == 0
    assert folders.folder(HELLO).is_dir()  # a name below another is no version of it


def test_the_last_version_takes_its_folders_with_it(folders: VersionFolders) -> None:
    add(folders, HELLO, ONE, "one")
    folders.point(HELLO, "current", ONE)
    folders.remove(HELLO, ONE)
    folders.remove(HELLO, ONE)  # gone already
    folders.unlink(HELLO, "current")
    assert list(folders.root.iterdir()) == []

"""`layerkit debug`: files in, files out, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_go import toy_go

from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreError,
    UsageError,
    VersionError,
)
from layerkit.formats import addressfree
from layerkit.formats.layer import Entry, build_tar
from layerkit.jobs.debug import decode, diff, encode, patch

DISK = Disk()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Two toys and their forms."""
    for name, hello in (("old", b"hello"), ("new", b"hello, wide world")):
        (tmp_path / name).write_bytes(toy_go(hello))
        encode(tmp_path / name, tmp_path / f"{name}.form", DISK)
    return tmp_path


def test_a_form_goes_there_and_back(here: Path) -> None:
    found = decode(here / "old.form", here / "same", DISK)
    assert (here / "same").read_bytes() == toy_go(b"hello")
    assert (found.size, os.access(here / "same", os.X_OK)) == (len(toy_go(b"hello")), True)


def test_encode_counts_what_it_made(here: Path) -> None:
    found = encode(here / "old", here / "again", DISK)
    made = addressfree.encode(toy_go(b"hello"))
    counts = (found.size, found.plain_size, found.labels_size, found.why_raw)
    assert counts == (len(made.form), len(toy_go(b"hello")), len(made.labels), ())


def test_encode_says_why_a_file_stays_raw(here: Path) -> None:
    (here / "text").write_bytes(b"some text")
    found = encode(here / "text", here / "out", DISK)
    assert found.why_raw == ("not an ELF64 little-endian file",)
    decode(here / "out", here / "back", DISK)
    assert (here / "back").read_bytes() == b"some text"


def test_a_layer_goes_there_and_back(here: Path) -> None:
    tar = build_tar([Entry("fn", toy_go() + bytes(1 << 16), 0o755)])
    (here / "layer").write_bytes(tar)
    assert encode(here / "layer", here / "out", DISK).labels_size > 0
    decode(here / "out", here / "back", DISK)
    assert (here / "back").read_bytes() == tar


def test_a_layer_without_binaries_has_no_form(here: Path) -> None:
    (here / "layer").write_bytes(build_tar([Entry("etc/zone", b"text")]))
    with pytest.raises(FormatError, match="has no form"):
        encode(here / "layer", here / "out", DISK)


@pytest.mark.parametrize("olds", [("old.form",), ("text", "old.form")])
def test_a_delta_makes_the_new_form(here: Path, olds: tuple[str, ...]) -> None:
    (here / "text").write_bytes(b"another old form")
    paths = [here / name for name in olds]
    diff(paths, here / "new.form", here / "delta", DISK)
    patch(paths, here / "delta", here / "out", DISK)
    assert (here / "out").read_bytes() == (here / "new.form").read_bytes()


def flip_major(here: Path) -> None:
    form = bytearray((here / "old.form").read_bytes())
    form[4] = 99
    (here / "out-of-time").write_bytes(form)


WRONG: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "another old form": (
        lambda here: patch([here / "new.form"], here / "delta", here / "out", DISK),
        IntegrityError,
    ),
    "too many old forms": (
        lambda here: patch([here / "old.form"] * 2, here / "delta", here / "out", DISK),
        FormatError,
    ),
    "no delta": (
        lambda here: patch([here / "old.form"], here / "old.form", here / "out", DISK),
        FormatError,
    ),
    "no form": (lambda here: decode(here / "old", here / "out", DISK), FormatError),
    "a form of another version": (
        lambda here: decode(here / "out-of-time", here / "out", DISK),
        VersionError,
    ),
    "no file": (lambda here: decode(here / "gone", here / "out", DISK), NotFoundError),
    "a folder": (lambda here: decode(here, here / "out", DISK), UsageError),
    "no folder to write to": (
        lambda here: decode(here / "old.form", here / "no" / "out", DISK),
        NotFoundError,
    ),
    "a stripped twin": (
        lambda here: encode(here / "old", here / "out", DISK, here / "old"),
        FormatError,
    ),
    "a twin of another link": (
        lambda here: encode(here / "old", here / "out", DISK, here / "new"),
        IntegrityError,
    ),
    "no twin": (
        lambda here: encode(here / "old", here / "out", DISK, here / "old.form"),
        FormatError,
    ),
    "symbols for a layer": (
        lambda here: encode(here / "layer", here / "out", DISK, here / "old"),
        UsageError,
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_fails_leaves_nothing_and_changes_nothing(here: Path, what: str) -> None:
    act, error = WRONG[what]
    diff([here / "old.form"], here / "new.form", here / "delta", DISK)
    (here / "layer").write_bytes(build_tar([Entry("etc/zone", b"text")]))
    flip_major(here)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    with pytest.raises(error) as caught:
        act(here)
    assert type(caught.value) is error
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_only_a_regular_file_is_replaced(here: Path, kind: str) -> None:
    target = here / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "link":
        target.symlink_to("old")
    else:
        os.mkfifo(target)
    with pytest.raises(UsageError):
        decode(here / "old.form", target, DISK)
    assert not target.is_file() or target.is_symlink()


def test_an_old_output_is_replaced(here: Path) -> None:
    (here / "out").write_bytes(b"before")
    decode(here / "old.form", here / "out", DISK)
    assert (here / "out").read_bytes() == toy_go(b"hello")


class FullDisk(Disk):
    """Fails on the first fsync."""

    def fsync_fd(self, fd: int, path: Path | str) -> None:
        raise StoreError("no space left")


def test_a_full_disk_leaves_the_old_output(here: Path) -> None:
    (here / "out").write_bytes(b"before")
    with pytest.raises(StoreError):
        decode(here / "old.form", here / "out", FullDisk())
    assert (here / "out").read_bytes() == b"before"
    assert not list(here.glob(f"{TEMP_PREFIX}*"))

"""edges/rootfs: nothing outside the root, whiteouts, limits, all or nothing."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from layerkit.edges.disk import Disk
from layerkit.edges.rootfs import Limits, extract_layers
from layerkit.errors import FormatError, StoreError

Item = tuple[str, bytes, bytes]  # name, type, data or link target


def layer(*items: Item, mode: int = 0o755) -> bytes:
    """A tar with exactly these entries, good or bad."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, data in items:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            if kind == tarfile.REGTYPE:
                info.size = len(data)
            else:
                info.linkname = data.decode()
            tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return out.getvalue()


def file(name: str, data: bytes = b"x") -> Item:
    return (name, tarfile.REGTYPE, data)


def link(name: str, target: str) -> Item:
    return (name, tarfile.SYMTYPE, target.encode())


def hard(name: str, target: str) -> Item:
    return (name, tarfile.LNKTYPE, target.encode())


def folder(name: str) -> Item:
    return (name, tarfile.DIRTYPE, b"")


def tree(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def extract(tmp_path: Path, *layers: bytes, limits: Limits | None = None) -> Path:
    extract_layers(layers, tmp_path / "root", Disk(), limits)
    return tmp_path / "root"


CASES: dict[str, tuple[list[bytes], set[str]]] = {
    "files and parents": ([layer(file("a/b/c"), file("d"))], {"a/b/c", "d"}),
    "absolute names": ([layer(file("/a"))], {"a"}),
    "an upper layer replaces": ([layer(file("a")), layer(file("a", b"y"))], {"a"}),
    "a file replaces a folder": ([layer(file("a/b")), layer(file("a"))], {"a"}),
    "a folder replaces a file": ([layer(file("a")), layer(folder("a"), file("a/b"))], {"a/b"}),
    "links": ([layer(link("a", "b/c"), link("d/e", "../a"))], {"a", "d/e"}),
    "an absolute link": ([layer(link("a", "/etc/passwd"))], {"a"}),
    "hard links": ([layer(file("a"), hard("b", "a"))], {"a", "b"}),
    "whiteout": ([layer(file("a"), file("b")), layer(file(".wh.a", b""))], {"b"}),
    "whiteout of a folder": ([layer(file("a/b/c"), file("d")), layer(file(".wh.a", b""))], {"d"}),
    "whiteout of nothing": ([layer(file("a")), layer(file("x/.wh.b", b""))], {"a"}),
    "opaque": (
        [layer(file("a/b"), file("a/c")), layer(file("a/n"), file("a/.wh..wh..opq", b""))],
        {"a/n"},
    ),
    "whiteout leaves its own layer": (
        [layer(file("a")), layer(file("a", b"y"), file(".wh.a", b""))],
        {"a"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_extracts(tmp_path: Path, name: str) -> None:
    layers, want = CASES[name]
    assert tree(extract(tmp_path, *layers)) == want


REFUSED: dict[str, list[bytes]] = {
    "dots": [layer(file("../out"))],
    "dots inside": [layer(file("a/../../out"))],
    "through a link": [layer(link("a", "/tmp"), file("a/out"))],
    "through a link of a lower layer": [layer(link("a", "b")), layer(file("a/out"))],
    "through a file": [layer(file("a"), file("a/out"))],
    "a link that climbs out": [layer(link("a", "../out"))],
    "a link that climbs out deeper": [layer(link("a/b", "x/../../../out"))],
    "an absolute link that climbs": [layer(link("a", "/../out"))],
    "a hard link to nothing": [layer(hard("a", "b"))],
    "a hard link out": [layer(hard("a", "../../etc/passwd"))],
    "a hard link to a link": [layer(link("a", "/etc/passwd"), hard("b", "a"))],
    "a hard link through a link": [layer(link("a", "/etc"), hard("b", "a/passwd"))],
    "a duplicate": [layer(file("a"), file("a"))],
    "a file over its own folder": [layer(file("a/b"), file("a"))],
    "a device": [layer(("a", tarfile.CHRTYPE, b""))],
    "a pipe": [layer(("a", tarfile.FIFOTYPE, b""))],
    "a long name": [layer(file("a" * 300))],
    "junk": [b"junk" * 200],
    "empty": [b""],
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError):
        extract(tmp_path, *REFUSED[name])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limits", [Limits(entry_count=2), Limits(total_size=5), Limits(depth=2)])
def test_limits(tmp_path: Path, limits: Limits) -> None:
    with pytest.raises(FormatError):
        extract(
            tmp_path, layer(file("a/b/c", b"1234"), file("d", b"5678"), file("e")), limits=limits
        )


def test_setuid_is_dropped_and_the_sticky_bit_of_a_folder_kept(tmp_path: Path) -> None:
    root = extract(tmp_path, layer(file("f"), folder("tmp"), mode=0o7777))
    modes = [(root / name).stat().st_mode & 0o7777 for name in ("f", "tmp")]
    assert modes == [0o777, 0o1777]


def test_a_folder_that_may_not_be_written_still_gets_its_files(tmp_path: Path) -> None:
    root = extract(tmp_path, layer(folder("a"), file("a/b"), mode=0o555))
    assert tree(root) == {"a/b"} and (root / "a").stat().st_mode & 0o777 == 0o555


def test_a_failure_leaves_the_old_tree(tmp_path: Path) -> None:
    extract(tmp_path, layer(file("old")))
    with pytest.raises(FormatError):
        extract(tmp_path, layer(file("new")), layer(file("../out")))
    assert tree(tmp_path / "root") == {"old"} and os.listdir(tmp_path) == ["root"]


def test_a_new_tree_replaces_the_old_one(tmp_path: Path) -> None:
    extract(tmp_path, layer(file("old")))
    assert tree(extract(tmp_path, layer(file("new")))) == {"new"}
    assert os.listdir(tmp_path) == ["root"]


def test_a_target_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"mine")
    with pytest.raises(StoreError):
        extract(tmp_path, layer(file("a")))
    assert (tmp_path / "root").read_bytes() == b"mine" and os.listdir(tmp_path) == ["root"]

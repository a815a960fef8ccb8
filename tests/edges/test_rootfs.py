"""edges/rootfs: nothing outside the root, whiteouts, limits, all or nothing."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import time
from pathlib import Path

import pytest

from layerkit.edges.disk import Disk, map_os_error
from layerkit.edges.rootfs import SYNC_COUNT, Limits, Rights, extract_layers
from layerkit.errors import FormatError, StoreError, StoreFullError

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


def pax(records: dict[str, str], *items: Item) -> bytes:
    """The same behind an extended header of everything that follows."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=records):
        pass
    head = out.getvalue().rstrip(b"\0")
    return head + bytes(-len(head) % 512) + layer(*items)


def sized_entry(size: str) -> bytes:
    """A file whose extended header says how long it is."""
    info = tarfile.TarInfo("a")
    info.pax_headers = {"size": size}
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


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
    "whiteouts of the parent, of itself, of nothing": (
        [
            layer(file("a/b"), file("c")),
            layer(file("a/.wh...", b""), file("a/.wh..", b"")),
            layer(file("a/.wh.", b""), file(".wh...", b"")),
        ],
        {"a/b", "c"},
    ),
    "a whiteout of the folder that was entered last": (
        [layer(file("a/b/c")), layer(file("a/b/d"), file("a/.wh.b", b""), file("a/b/e"))],
        {"a/b/c", "a/b/d", "a/b/e"},
    ),
    "a file replaces a folder with a mode": (
        [layer(folder("a"), file("a/b")), layer(file("a"))],
        {"a"},
    ),
    "unused extended records": ([pax({f"k.{n}": "v" * 50 for n in range(9000)}, file("a"))], {"a"}),
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
    "a whiteout twice": [layer(file("a")), layer(file(".wh.a", b""), file(".wh.a", b""))],
    "a folder as whiteout twice": [layer(folder("a/.wh..wh..opq"), folder("a/.wh..wh..opq"))],
    "a file over its own folder": [layer(file("a/b"), file("a"))],
    "a device": [layer(("a", tarfile.CHRTYPE, b""))],
    "a pipe": [layer(("a", tarfile.FIFOTYPE, b""))],
    "a long name": [layer(file("a" * 300))],
    "a block device": [layer(("a", tarfile.BLKTYPE, b""))],
    "a long part": [layer(file("a/" + "b" * 300 + "/c"))],
    "a path over the system's limit": [layer(file("/".join(["a" * 200] * 30)))],
    "a very deep path": [layer(file("a/" * 100_000 + "b"))],
    "a deep path": [layer(file("a/" * 65 + "b"))],
    "a zero in a name": [pax({"path": "a\0b"}, file("a"))],
    "a zero in a link": [pax({"linkpath": "a\0b"}, link("a", "b"))],
    "a hard link to the root": [layer(hard("a", "/"))],
    "a hard link to a folder": [layer(folder("a"), hard("b", "a"))],
    "a link over a folder of its own layer": [layer(file("a/b"), link("a", "/tmp"))],
    "a link swapped for a folder": [layer(file("a/b")), layer(link("a", "/tmp"), file("a/out"))],
    "a sparse file": [pax({"GNU.sparse.major": "1"}, file("a"))],
    "an old sparse file": [layer(("a", tarfile.GNUTYPE_SPARSE, b""))],
    "a size beyond the tar": [sized_entry("99999999999999")],
    "a time beyond all": [pax({"mtime": "99999999999999999999"}, file("a"))],
    "an owner beyond all": [pax({"uid": "4294967295"}, file("a"))],
    "an extended header over its limit": [pax({"comment": "x" * (1 << 20)}, file("a"))],
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


def test_folders_that_no_layer_names_count(tmp_path: Path) -> None:
    deep = [file(f"{n}/" + "d/" * 60 + "f") for n in range(3)]
    with pytest.raises(FormatError, match="over 100"):
        extract(tmp_path, layer(*deep), limits=Limits(entry_count=100))


def test_a_folder_that_went_and_came_back_has_its_new_mode(tmp_path: Path) -> None:
    old, gone = layer(folder("a/b"), mode=0o700), layer(file(".wh.a", b""))
    root = extract(tmp_path, old, gone, layer(file("a/b/c")), layer(folder("a"), mode=0o711))
    modes = [(root / name).stat().st_mode & 0o777 for name in ("a", "a/b")]
    assert modes == [0o711, 0o755 & ~os.umask(os.umask(0))]


@pytest.mark.slow
def test_whiteouts_among_many_folders_take_no_time_for_each(tmp_path: Path) -> None:
    many = 8000
    lower = layer(*(folder(f"d{n}") for n in range(many)), *(file(f"f{n}") for n in range(many)))
    upper = layer(*(file(f".wh.f{n}", b"") for n in range(many)))
    started = time.process_time()
    extract(tmp_path, lower, upper)
    assert time.process_time() - started < 9  # 3 s; 19 s where each removal looks at all folders


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


def test_a_name_that_somebody_swaps_for_a_link_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    class Swapping(Disk):
        def open_at(self, folder_fd: int, name: str, mode: int = 0o600) -> int:
            if name == "second":  # another process, between two files of a folder
                (temp,) = tmp_path.glob(".tmp-*")
                (temp / "a/b").rename(temp / "a/c")
                (temp / "a/b").symlink_to(tmp_path / "out")
            return super().open_at(folder_fd, name, mode)

    plain = layer(file("a/b/first"), file("a/b/second"), file("d"), file("a/b/third"))
    with pytest.raises(FormatError, match="through a link"):
        extract_layers([plain], tmp_path / "root", Swapping())
    assert sorted(os.listdir(tmp_path)) == ["out"] and os.listdir(tmp_path / "out") == []


def test_a_header_of_many_records_costs_its_own_size(tmp_path: Path) -> None:
    records = {f"k{n}": "v" for n in range(60_000)}
    started = time.process_time()
    extract(tmp_path, pax(records, *(file(f"a{n}") for n in range(300))))
    assert time.process_time() - started < 60  # merging them into each entry would take minutes


@pytest.mark.parametrize("size", [7, 8])
def test_a_size_limit_counts_all_layers(tmp_path: Path, size: int) -> None:
    layers, limits = [layer(file("a", b"1234")), layer(file("b", b"5678"))], Limits(total_size=size)
    if size == 8:
        assert tree(extract(tmp_path, *layers, limits=limits)) == {"a", "b"}
        return
    with pytest.raises(FormatError, match="over 7 bytes"):
        extract(tmp_path, *layers, limits=limits)


@pytest.mark.parametrize("count", [1, SYNC_COUNT, SYNC_COUNT + 1])
def test_every_file_and_folder_is_durable_before_the_tree_has_its_name(
    tmp_path: Path, count: int
) -> None:
    names = [f"a/{n}" for n in range(count)]
    flushed: set[int] = set()

    class Watching(Disk):
        def fsync_fd(self, fd: int, path: Path | str) -> None:
            super().fsync_fd(fd, path)
            flushed.add(os.fstat(fd).st_ino)

        def sync_filesystem(self, fd: int, path: Path | str) -> None:
            super().sync_filesystem(fd, path)
            (temp,) = tmp_path.glob(".tmp-*")
            flushed.update(path.stat().st_ino for path in (temp, *temp.rglob("*")))

        def exchange_folder(self, new: Path, path: Path) -> None:
            assert {path.stat().st_ino for path in (new, *new.rglob("*"))} <= flushed
            super().exchange_folder(new, path)

    plain = layer(folder("a"), *map(file, names))
    extract_layers([plain], tmp_path / "root", Watching())
    assert tree(tmp_path / "root") == set(names)


# --- on request ------------------------------------------------------------------------------

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices are for root")


def owned(name: str, kind: bytes, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = kind, mode, 1234, 5678
    info.devmajor, info.devminor = 1, 3
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


@AS_ROOT
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_owners_and_setuid_on_request(tmp_path: Path, kind: bytes) -> None:
    rights = Rights(devices=True, setuid=True, owners=True)
    extract_layers([owned("a", kind, 0o6755)], tmp_path / "root", Disk(), None, rights)
    found = (tmp_path / "root/a").stat()
    want = {tarfile.REGTYPE: 0o6755, tarfile.DIRTYPE: 0o2755, tarfile.FIFOTYPE: 0o755}[kind]
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 5678, want)


@AS_ROOT
def test_devices_on_request(tmp_path: Path) -> None:
    rights = Rights(devices=True)
    plain = owned("null", tarfile.CHRTYPE, 0o666)
    extract_layers([plain], tmp_path / "root", Disk(), None, rights)
    found = (tmp_path / "root/null").stat()
    assert stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o666)


@AS_ROOT
def test_owners_are_not_taken_unasked(tmp_path: Path) -> None:
    extract_layers([owned("a", tarfile.REGTYPE, 0o755)], tmp_path / "root", Disk())
    assert (tmp_path / "root/a").stat().st_uid == os.geteuid()


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    class Full(Disk):
        def write_fd(self, fd: int, data: memoryview, path: Path | str) -> None:
            raise map_os_error(OSError(errno.ENOSPC, "full"), "write", path)

    with pytest.raises(StoreFullError, match=f"{tmp_path}/.*/a/b"):
        extract_layers([layer(file("a/b"))], tmp_path / "root", Full())

"""Layers: one tar for one set of entries, readable by others; bounded reading of any tar."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import sha256_digest
from layerkit.errors import FormatError
from layerkit.formats import layer, tar
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.tar import read_tar

LONG = "a/" + "d" * 90 + "/" + "f" * 90
ENTRIES = [
    Entry("etc/passwd", b"root\n"),
    Entry("tmp", mode=0o1777, kind=tar.FOLDER),
    Entry(LONG, b"1" * 513),
    Entry("x" * 180, b"pax path"),
    Entry("ü/file", b"not ascii", 0o755),
    Entry("link", kind=tar.SYMLINK, link="/" + "t" * 150),
]

FROZEN = "sha256:0fb86422cf85dfc29dcb6387205332dd8dcfb8ff9d1701fdaabcb303b2cb3b11"


def test_layer_bytes_are_frozen() -> None:
    """Every image's digest hangs on these bytes; a change is a new layer format."""
    assert str(sha256_digest(build_tar(ENTRIES))) == FROZEN


def test_order_of_entries_does_not_matter() -> None:
    assert build_tar(reversed(ENTRIES)) == build_tar(ENTRIES)


def test_tarfile_reads_the_same() -> None:
    data = build_tar(ENTRIES)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        theirs = [(m.name, m.mode, m.linkname, m.mtime, m.uid, m.gid) for m in archive]
    ours = [(e.path, e.mode, e.link, e.mtime, e.uid, e.gid) for e in read_tar(data)]
    assert ours == theirs


def test_parents_come_before_children() -> None:
    paths = [entry.path for entry in read_tar(build_tar(ENTRIES))]
    assert all(path.rpartition("/")[0] in ["", *paths[:at]] for at, path in enumerate(paths))


def test_base_has_users_certificates_zones_and_tmp() -> None:
    data = build_tar(layer.base_entries(b"CA", {"Europe/Berlin": b"TZif"}))
    found = {entry.path: entry for entry in read_tar(data) if entry.kind == tar.FILE}
    assert sorted(found) == [
        "etc/group",
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
        "usr/share/zoneinfo/Europe/Berlin",
    ]


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\0"])
def test_unclean_paths_are_not_written(path: str) -> None:
    with pytest.raises(FormatError):
        Entry(path)


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(FormatError, match="twice"):
        build_tar([Entry("a", b"1"), Entry("a", b"2")])


def test_a_file_is_no_parent() -> None:
    with pytest.raises(FormatError, match="and a folder"):
        build_tar([Entry("a", b"1"), Entry("a/b", b"2")])


def _foreign(kind: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        info = tarfile.TarInfo("./n" + "n" * (300 if kind != tarfile.USTAR_FORMAT else 50))
        info.size, info.mtime, info.uid = 3, 12, 70_000
        archive.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars_are_read(kind: int) -> None:
    (entry,) = read_tar(_foreign(kind))
    assert (entry.path[:2], bytes(entry.data), entry.mtime, entry.uid) == ("nn", b"abc", 12, 70_000)


def _one(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        _one("a")[:512],
        _one("../a"),
        _one("a/../../b"),
        _one("a", tarfile.LNKTYPE, "../../etc/passwd"),
        _one("a", tarfile.SYMTYPE, ""),
        _one("a", b"S"),
        _one("a", b"?"),
        b"x" * 1024,
    ],
    ids=range(9),
)
def test_bad_tars_are_format_errors(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(read_tar(data))


@given(st.integers(0, 4607), st.integers(0, 255), st.booleans())
def test_only_format_errors(offset: int, value: int, fix: bool) -> None:
    data = bytearray(build_tar(ENTRIES))
    data[offset] = value
    if fix:  # reach past the checksum
        start = offset // 512 * 512
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    with contextlib.suppress(FormatError):
        list(read_tar(bytes(data)))

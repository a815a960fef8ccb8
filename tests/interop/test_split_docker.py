"""A real engine makes the same files of an image that was cut anew, down to owners and times."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import pytest
from docker_engine import Engine

from layerkit.digest import sha256_digest
from layerkit.edges.layout import Layout, write_docker_archive
from layerkit.formats import oci, tar
from layerkit.formats.deflate import compression_by_name
from layerkit.formats.reference import Reference
from layerkit.formats.tar import TarEntry, write_tar
from layerkit.formats.tree import parents
from layerkit.jobs.split import split

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("emptied")]
AMD64 = oci.Platform("linux", "amd64")
LAYERS = [
    [
        TarEntry("etc", tar.FOLDER, 0o751, uid=3, mtime=1_600_000_000),
        TarEntry("etc/gone", tar.FILE, data=b"x"),
        TarEntry("usr", tar.FOLDER, 0o755, mtime=1_600_000_001),
        TarEntry("usr/bin", tar.FOLDER, 0o755, mtime=1_600_000_002),
        TarEntry("usr/bin/su", tar.FILE, 0o4755, gid=7, mtime=5, data=b"su"),
        TarEntry("usr/bin/alias", tar.HARDLINK, 0o4755, gid=7, mtime=5, link="usr/bin/su"),
        TarEntry("bin", tar.SYMLINK, 0o777, link="usr/bin", mtime=9),
        TarEntry("dev/null", tar.CHAR_DEVICE, 0o666, device=(1, 3)),
        TarEntry("run/pipe", tar.PIPE, 0o600, uid=9),
        TarEntry("var/lib/dpkg/info/a.list", tar.FILE, data=b"/opt/owned\n"),
        TarEntry("opt/owned", tar.FILE, data=b"base"),
        TarEntry("opt/lib/python3/site-packages/m.py", tar.FILE, data=b"deps"),
        TarEntry("data", tar.FOLDER, 0o1777),
        TarEntry("data/old", tar.FILE),
    ],
    [
        TarEntry("etc/.wh.gone", tar.FILE),
        TarEntry("data", tar.FOLDER, 0o700, uid=11, mtime=77),
        TarEntry("data/.wh..wh..opq", tar.FILE),
        TarEntry("data/new", tar.FILE, data=b"new", mtime=78, nanoseconds=123),
        TarEntry("usr/bin/tool", tar.FILE, 0o755, data=b"tool", mtime=79),
        TarEntry(
            "srv/cap", tar.FILE, 0o755, data=b"c", xattrs=(("user.note", b"\xff\0z"),), mtime=80
        ),
        TarEntry("usr/bin", tar.FOLDER, 0o755, mtime=1_600_000_002),
    ],
]


def complete(entries: list[TarEntry]) -> list[TarEntry]:
    """With the folders that lead to each file, as builders write them: docker 20.10 gives a folder
    that a layer only implies new rights, even where a lower layer has it."""
    known = {entry.path: entry for layer in LAYERS for entry in layer if entry.kind == tar.FOLDER}
    out: dict[str, TarEntry] = {}
    for entry in entries:
        for parent in parents(entry.path):
            folder = known.get(parent, TarEntry(parent, tar.FOLDER, 0o755, mtime=3))
            out.setdefault(parent, folder)
        out[entry.path] = entry
    return list(out.values())


def publish(layout: Layout, ref: Reference) -> oci.Descriptor:
    tars = [write_tar(complete(entries)) for entries in LAYERS]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/tool"]},
        "rootfs": {"type": "layers", "diff_ids": [str(sha256_digest(one)) for one in tars]},
    }
    with layout.batch():
        blobs = tuple(layout.put_blob(gzip.compress(one), oci.LAYER_GZIP) for one in tars)
        stored = layout.put_blob(json.dumps(config).encode(), oci.CONFIG)
        raw = oci.serialize_manifest(oci.Manifest(stored, blobs))
        top = layout.put_blob(raw, oci.MANIFEST)
        layout.commit(ref, top, [])
    return top


def files_of(engine: Engine, archive: Path, ref: Reference, folder: Path) -> dict[str, object]:
    """Everything that the engine says of the files of a container of this image."""
    engine.docker("load", "-i", archive)
    return export_files(engine, ref, folder)


def export_files(engine: Engine, ref: Reference, folder: Path) -> dict[str, object]:
    """The same of an image that the engine has."""
    name = engine.docker("create", str(ref)).strip()
    try:
        engine.docker("export", "-o", folder / "export.tar", name)
    finally:
        engine.docker("rm", name)
    found: dict[str, object] = {}
    with tarfile.open(folder / "export.tar") as file:
        for info in file:
            data = file.extractfile(info) if info.isreg() or info.islnk() else None
            kept = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY")}
            owner = (info.mode, info.uid, info.gid)
            device = (info.devmajor, info.devminor) if info.isdev() else ()
            found[info.name] = (
                (info.type, owner, info.linkname, device, kept)
                + ((int(info.mtime),) if info.name not in ENGINES_OWN else ())
                + ((data.read(),) if data is not None else ())
            )
    return found


ENGINES_OWN = {"etc", "dev", ".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf"} | {
    "etc/mtab", "dev/console", "dev/pts", "dev/shm", "proc", "sys", "",
}  # fmt: skip


def test_the_engine_sees_the_same_files(engine: Engine, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    old, new = Reference.parse("splitold:1"), Reference.parse("splitnew:1")
    top = publish(layout, old)
    result = split(layout, top, new, layout, recipe=compression_by_name("gzip"))
    assert [one.role for one in result.images[0].layers] == ["base", "deps", "code"]
    seen = []
    for ref in (old, new):
        write_docker_archive(layout, ref, tmp_path / "a.tar", AMD64)
        seen.append(files_of(engine, tmp_path / "a.tar", ref, tmp_path))
    assert "usr/bin/tool" in seen[0] and "data/old" not in seen[0]
    assert seen[0] == seen[1]

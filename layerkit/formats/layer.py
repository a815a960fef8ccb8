"""Layers: the base/deps/code rule, and the one tar of a layer's entries.

Entries sorted by path, parents made, time 0, owner 0:0, no names. How a tar is written and read is
`tar`'s business, compression `deflate`'s. Layers are held in memory whole. Spec: docs/design.md
"Layers".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError
from layerkit.formats.tar import FILE, FOLDER, HARDLINK, SYMLINK, TarEntry, clean_path, write_tar

__all__ = [
    "APP_FOLDER",
    "BASE",
    "CA_PATH",
    "CODE",
    "DEPS",
    "NONROOT",
    "ROLES",
    "ZONES_PATH",
    "Entry",
    "base_entries",
    "build_tar",
    "code_entries",
]

BASE: Final = "base"
DEPS: Final = "deps"
CODE: Final = "code"
ROLES: Final = (BASE, DEPS, CODE)  # in the order of layers in an image

APP_FOLDER: Final = "app"
CA_PATH: Final = "etc/ssl/certs/ca-certificates.crt"
ZONES_PATH: Final = "usr/share/zoneinfo"
NONROOT: Final = 65532  # uid and gid; the same number as distroless and ko use
_PASSWD: Final = (
    b"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
)
_GROUP: Final = b"root:x:0:\nnonroot:x:65532:\n"
_KINDS: Final = (FILE, FOLDER, SYMLINK, HARDLINK)


@dataclass(frozen=True, slots=True)
class Entry:
    """What to write: a path relative to the root, its kind, bytes or link target, mode bits."""

    path: str
    data: bytes = b""
    mode: int = 0o644
    kind: str = FILE
    link: str = ""

    def __post_init__(self) -> None:
        if clean_path(self.path) != self.path or not self.path:
            raise FormatError(f"layer path {self.path[:120]!r} is not clean and relative")
        if self.kind not in _KINDS or not 0 <= self.mode <= 0o7777:
            raise FormatError(f"layer entry {self.path[:120]!r} has a bad kind or mode")


# --- the rule ----------------------------------------------------------------------------------


def base_entries(ca_bundle: bytes, zones: Mapping[str, bytes]) -> list[Entry]:
    """The base layer: the same for every function that was built with the same packages."""
    entries = [
        Entry("etc/passwd", _PASSWD),
        Entry("etc/group", _GROUP),
        Entry(CA_PATH, ca_bundle),
        Entry("tmp", mode=0o1777, kind=FOLDER),
    ]
    entries += [Entry(f"{ZONES_PATH}/{name}", data) for name, data in zones.items()]
    return entries


def code_entries(name: str, binary: bytes, configuration: Iterable[Entry] = ()) -> list[Entry]:
    """The code layer: the binary at /app/NAME and the function's configuration."""
    return [Entry(f"{APP_FOLDER}/{name}", binary, 0o755), *configuration]


# --- the tar -----------------------------------------------------------------------------------


def build_tar(entries: Iterable[Entry]) -> bytes:
    """The one tar of these entries; missing parent folders are added with mode 0755."""
    by_path: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in by_path:
            raise FormatError(f"layer path {entry.path[:120]!r} is given twice")
        by_path[entry.path] = entry
    for path in list(by_path):
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            parent = "/".join(parts[:count])
            known = by_path.setdefault(parent, Entry(parent, mode=0o755, kind=FOLDER))
            if known.kind != FOLDER:
                raise FormatError(f"layer path {parent[:120]!r} is a {known.kind} and a folder")
    ordered = sorted(by_path.values(), key=lambda entry: entry.path.split("/"))
    return write_tar(
        TarEntry(entry.path, entry.kind, entry.mode, link=entry.link, data=entry.data)
        for entry in ordered
    )

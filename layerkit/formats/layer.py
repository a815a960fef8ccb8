"""Layers: deterministic tars, the base/deps/code rule, and bounded reading of anybody's tar.

Writing: entries sorted by path, parents made, time 0, owner 0:0, no names; our own header writer,
because tarfile's bytes differ between Python releases. Reading: strict; whatever follows is not
guessed at, and only FormatError is raised. It neither compresses (formats/deflate) nor touches a
disk (edges/rootfs extracts). Layers are held in memory whole. Spec: POSIX pax; docs/design.md
"Layers". Limits: MAX_ENTRY_COUNT, MAX_PATH_SIZE, MAX_PAX_SIZE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError

__all__ = [
    "APP_FOLDER",
    "BASE",
    "BLOCK_DEVICE",
    "CA_PATH",
    "CHAR_DEVICE",
    "CODE",
    "DEPS",
    "FILE",
    "FOLDER",
    "HARDLINK",
    "NONROOT",
    "PIPE",
    "ROLES",
    "SYMLINK",
    "ZONES_PATH",
    "Entry",
    "TarEntry",
    "base_entries",
    "build_tar",
    "code_entries",
    "read_tar",
]

BASE: Final = "base"
DEPS: Final = "deps"
CODE: Final = "code"
ROLES: Final = (BASE, DEPS, CODE)  # in the order of layers in an image

FILE: Final = "file"
FOLDER: Final = "folder"
SYMLINK: Final = "symlink"
HARDLINK: Final = "hardlink"
CHAR_DEVICE: Final = "character device"  # this and what follows: read, never written
BLOCK_DEVICE: Final = "block device"
PIPE: Final = "pipe"

APP_FOLDER: Final = "app"
CA_PATH: Final = "etc/ssl/certs/ca-certificates.crt"
ZONES_PATH: Final = "usr/share/zoneinfo"
NONROOT: Final = 65532  # uid and gid; the same number as distroless and ko use
_PASSWD: Final = (
    b"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
)
_GROUP: Final = b"root:x:0:\nnonroot:x:65532:\n"

BLOCK_SIZE: Final = 512  # bytes
MAX_ENTRY_COUNT: Final = 1 << 20
MAX_PATH_SIZE: Final = 4096  # bytes: PATH_MAX
MAX_PAX_SIZE: Final = 1 << 20  # bytes of one extended header
MAX_USTAR_SIZE: Final = 0o77777777777  # bytes: eleven octal digits
MAX_TIME: Final = 1 << 40  # seconds since 1970: far beyond what a file can have
MAX_OWNER: Final = (1 << 32) - 2  # uid or gid; the one above means "leave it"
MAX_DEVICE: Final = (1 << 20) - 1  # minor number of a device; major numbers are smaller

# name, mode, uid, gid, size, mtime, checksum, type, link name, magic, version, user, group,
# device major, device minor, prefix
HEADER: Final = struct.Struct("<100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
assert HEADER.size == BLOCK_SIZE
_CHECKSUM_OFFSET: Final = 148
_KIND_TYPES: Final = {FILE: b"0", HARDLINK: b"1", SYMLINK: b"2", FOLDER: b"5"}
_TYPE_KINDS: Final = {code: kind for kind, code in _KIND_TYPES.items()} | {
    b"\0": FILE,
    b"3": CHAR_DEVICE,
    b"4": BLOCK_DEVICE,
    b"6": PIPE,
    b"7": FILE,
}
# Records of extended headers that we use. What else stands there (extended attributes too) is not
# kept, so that a header with a hundred thousand of them costs its own size and no more.
_PAX_KEYS: Final = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))
_SPARSE: Final = "GNU.sparse"


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
        if self.kind not in _KIND_TYPES or not 0 <= self.mode <= 0o7777:
            raise FormatError(f"layer entry {self.path[:120]!r} has a bad kind or mode")


@dataclass(frozen=True, slots=True)
class TarEntry:
    """What was read: `data` is a slice of the tar. `path` is clean: no root, no `.` or `..`.

    A hard link's `link` is a clean path too; a symbolic link's is whatever was written there.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    link: str
    data_offset: int
    data: memoryview
    device: tuple[int, int] = (0, 0)  # major and minor number


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


# --- writing -----------------------------------------------------------------------------------


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
    out = bytearray()
    for entry in sorted(by_path.values(), key=lambda entry: entry.path.split("/")):
        _put_entry(out, entry)
    out += bytes(2 * BLOCK_SIZE)
    return bytes(out)


def _put_entry(out: bytearray, entry: Entry) -> None:
    raw_path = entry.path.encode("utf-8") + (b"/" if entry.kind == FOLDER else b"")
    raw_link = entry.link.encode("utf-8")
    split = _split_path(raw_path)
    records = b""
    if split is None or not raw_path.isascii():
        records += _pax_record(b"path", raw_path)
    if len(raw_link) > 100 or not raw_link.isascii():
        records += _pax_record(b"linkpath", raw_link)
    if len(entry.data) > MAX_USTAR_SIZE:
        records += _pax_record(b"size", str(len(entry.data)).encode("ascii"))
    if records:
        out += _header(b"", b"pax", b"x", 0o644, len(records))
        _put_padded(out, records)
    prefix, name = split or (b"", raw_path[-100:])
    size = len(entry.data) if len(entry.data) <= MAX_USTAR_SIZE else 0
    out += _header(prefix, name, _KIND_TYPES[entry.kind], entry.mode, size, raw_link[:100])
    _put_padded(out, entry.data)


def _put_padded(out: bytearray, data: bytes) -> None:
    out += data
    out += bytes(-len(data) % BLOCK_SIZE)


def _header(
    prefix: bytes, name: bytes, kind: bytes, mode: int, size: int, link: bytes = b""
) -> bytes:
    """One ustar header block: owner 0:0, time 0, no user and group names."""
    block = bytearray(
        HEADER.pack(
            name,
            b"%07o" % mode,
            b"%07o" % 0,
            b"%07o" % 0,
            b"%011o" % size,
            b"%011o" % 0,
            b" " * 8,
            kind,
            link,
            b"ustar",
            b"00",
            b"",
            b"",
            b"%07o" % 0,
            b"%07o" % 0,
            prefix,
        )
    )
    block[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 8] = b"%06o\0 " % sum(block)
    return bytes(block)


def _split_path(raw_path: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) as ustar holds them; None where the path does not fit."""
    if len(raw_path) <= 100:
        return b"", raw_path
    for at in range(min(155, len(raw_path) - 2), 0, -1):
        if raw_path[at : at + 1] == b"/" and len(raw_path) - at - 1 <= 100:
            return raw_path[:at], raw_path[at + 1 :]
    return None


def _pax_record(key: bytes, value: bytes) -> bytes:
    """``length key=value\\n``, where the length counts its own digits."""
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    if len(str(total)) != len(str(size)):
        total = size + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


# --- reading -----------------------------------------------------------------------------------


def clean_path(raw_path: str) -> str:
    """A relative path without empty and `.` parts ("" is the root); `..` is a FormatError."""
    if "\0" in raw_path or len(raw_path.encode("utf-8", "surrogateescape")) > MAX_PATH_SIZE:
        raise FormatError(
            f"tar: path {raw_path[:120]!r} is over {MAX_PATH_SIZE} bytes or has a zero"
        )
    parts = [part for part in raw_path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise FormatError(f"tar: path {raw_path[:120]!r} leaves the root")
    return "/".join(parts)


def read_tar(data: bytes | memoryview) -> Iterator[TarEntry]:
    """Entries of a plain tar in order (ustar, pax, GNU long names); raises FormatError.

    Sparse files and unknown types are refused. Memory is bounded by `data`, one header at a time.
    """
    view = memoryview(data)
    offset = 0
    count = 0
    extended: dict[str, bytes] = {}
    everywhere: dict[str, bytes] = {}
    while True:
        if offset + BLOCK_SIZE > len(view):
            raise FormatError("tar: ends without a zero block", offset=offset)
        block = bytes(view[offset : offset + BLOCK_SIZE])
        if not block.strip(b"\0"):
            if extended:
                raise FormatError("tar: an extended header stands alone", offset=offset)
            return
        count += 1
        if count > MAX_ENTRY_COUNT:
            raise FormatError(f"tar: over {MAX_ENTRY_COUNT} entries", offset=offset)
        fields = _check_header(block, offset)
        kind = fields[7]
        size = _number(fields[4], offset)
        if kind in b"xgLK":
            if size > MAX_PAX_SIZE:
                raise FormatError("tar: extended header is over its limit", offset=offset)
        elif "size" in extended:
            size = _decimal(extended["size"], offset)
        start = offset + BLOCK_SIZE
        if size > len(view) - start:
            raise FormatError(f"tar: entry of {size} bytes ends early", offset=offset)
        body = view[start : start + size]
        if kind == b"x":
            extended |= _parse_pax(bytes(body), start)
        elif kind == b"g":
            everywhere |= _parse_pax(bytes(body), start)
        elif kind in b"LK":
            extended["path" if kind == b"L" else "linkpath"] = bytes(body).rstrip(b"\0")
        else:
            yield _entry(fields, everywhere | extended, start, body, offset)
            extended = {}
        offset = start + size + -size % BLOCK_SIZE


def _entry(
    fields: tuple[bytes, ...],
    extended: Mapping[str, bytes],
    start: int,
    body: memoryview,
    offset: int,
) -> TarEntry:
    code = fields[7]
    name = fields[0].split(b"\0")[0]
    prefix = fields[15].split(b"\0")[0] if fields[9] == b"ustar\0" else b""
    raw_path = extended.get("path", prefix + b"/" + name if prefix else name)
    raw_link = extended.get("linkpath", fields[8].split(b"\0")[0])
    kind = _TYPE_KINDS.get(code)
    if kind is None or _SPARSE in extended:
        raise FormatError(f"tar: entry type {code!r} is not known", offset=offset)
    if kind == FILE and raw_path.endswith(b"/"):  # pre-POSIX tars mark folders so
        kind = FOLDER
    if kind != FILE and len(body):
        raise FormatError(f"tar: a {kind} has {len(body)} bytes of data", offset=offset)
    link = raw_link.decode("utf-8", "surrogateescape")
    if kind == SYMLINK and ("\0" in link or not link or len(raw_link) > MAX_PATH_SIZE):
        raise FormatError("tar: a symbolic link's target is not a path", offset=offset)
    is_device = kind in (CHAR_DEVICE, BLOCK_DEVICE)
    return TarEntry(
        clean_path(raw_path.decode("utf-8", "surrogateescape")),
        kind,
        _number(fields[1], offset) & 0o7777,
        _bounded(_extended_number(extended, "uid", fields[2], offset), MAX_OWNER, offset),
        _bounded(_extended_number(extended, "gid", fields[3], offset), MAX_OWNER, offset),
        _bounded(_extended_number(extended, "mtime", fields[5], offset), MAX_TIME, offset),
        clean_path(link) if kind == HARDLINK else link if kind == SYMLINK else "",
        start,
        body,
        (_device(fields[13], offset), _device(fields[14], offset)) if is_device else (0, 0),
    )


def _bounded(value: int, limit: int, offset: int) -> int:
    """An owner, a time or a device number that the system can take."""
    if value > limit:
        raise FormatError(f"tar: {value} is over {limit}", offset=offset)
    return value


def _device(raw: bytes, offset: int) -> int:
    return _bounded(_number(raw, offset), MAX_DEVICE, offset)


def _check_header(block: bytes, offset: int) -> tuple[bytes, ...]:
    fields: tuple[bytes, ...] = HEADER.unpack(block)
    blank = block[:_CHECKSUM_OFFSET] + b" " * 8 + block[_CHECKSUM_OFFSET + 8 :]
    if _number(fields[6], offset) != sum(blank):
        raise FormatError("tar: header checksum is wrong", offset=offset)
    return fields


def _number(raw: bytes, offset: int) -> int:
    """Octal digits, or GNU's base 256 for large values."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.split(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise FormatError(f"tar: {raw!r} is not a number", offset=offset)
    return int(digits or b"0", 8)


def _decimal(raw: bytes, offset: int) -> int:
    if not raw.isdigit() or len(raw) > 20:
        raise FormatError(f"tar: {raw[:40]!r} is not a number", offset=offset)
    return int(raw)


def _extended_number(extended: Mapping[str, bytes], key: str, raw: bytes, offset: int) -> int:
    """A pax value (fractions of a second are dropped), else the header's field."""
    if key in extended:
        return _decimal(extended[key].removeprefix(b"-").split(b".")[0], offset)
    return _number(raw, offset)


def _parse_pax(body: bytes, offset: int) -> dict[str, bytes]:
    """Records of one extended header that we use."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 8)
        if space < 0 or not body[at:space].isdigit():
            raise FormatError("tar: extended record has no length", offset=offset + at)
        end = at + int(body[at:space])
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if end > len(body) or end <= space + 1 or body[end - 1 : end] != b"\n" or not equals:
            raise FormatError("tar: extended record is malformed", offset=offset + at)
        if key in _PAX_KEYS:
            records[key.decode("ascii")] = value
        elif key.startswith(b"GNU.sparse"):
            records[_SPARSE] = value
        at = end
    return records

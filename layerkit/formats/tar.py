"""Tars: bounded reading of anybody's, deterministic writing of our own.

Reading is strict: ustar, pax and GNU long names; what else follows is not guessed at, and only
FormatError is raised. Writing is our own, because tarfile's bytes differ between Python releases:
the same entries give the same bytes everywhere. Nothing is compressed here (formats/deflate) and no
disk is touched (edges/rootfs extracts). Tars are held in memory whole. Spec: POSIX pax.
Limits: MAX_ENTRY_COUNT, MAX_PATH_SIZE, MAX_PAX_SIZE, MAX_XATTRS_SIZE.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError

__all__ = [
    "BLOCK_DEVICE",
    "CHAR_DEVICE",
    "FILE",
    "FOLDER",
    "HARDLINK",
    "MAX_PATH_SIZE",
    "PIPE",
    "SYMLINK",
    "TarEntry",
    "clean_path",
    "read_tar",
    "write_tar",
]

FILE: Final = "file"
FOLDER: Final = "folder"
SYMLINK: Final = "symlink"
HARDLINK: Final = "hardlink"
CHAR_DEVICE: Final = "character device"
BLOCK_DEVICE: Final = "block device"
PIPE: Final = "pipe"

BLOCK_SIZE: Final = 512  # bytes
MAX_ENTRY_COUNT: Final = 1 << 20
MAX_PATH_SIZE: Final = 4096  # bytes: PATH_MAX
MAX_PAX_SIZE: Final = 1 << 20  # bytes of one extended header
MAX_XATTRS_SIZE: Final = 1 << 18  # bytes of an entry's extended attributes; Linux takes 64 KiB each
MAX_USTAR_SIZE: Final = 0o77777777777  # bytes: eleven octal digits
MAX_USTAR_OWNER: Final = 0o7777777  # seven octal digits
MAX_TIME: Final = 1 << 40  # seconds since 1970: far beyond what a file can have
MAX_OWNER: Final = (1 << 32) - 2  # uid or gid; the one above means "leave it"
MAX_DEVICE: Final = (1 << 20) - 1  # minor number of a device; major numbers are smaller

# name, mode, uid, gid, size, mtime, checksum, type, link name, magic, version, user, group,
# device major, device minor, prefix
HEADER: Final = struct.Struct("<100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
assert HEADER.size == BLOCK_SIZE
_CHECKSUM_OFFSET: Final = 148
_KIND_TYPES: Final = {
    FILE: b"0",
    HARDLINK: b"1",
    SYMLINK: b"2",
    CHAR_DEVICE: b"3",
    BLOCK_DEVICE: b"4",
    FOLDER: b"5",
    PIPE: b"6",
}
_TYPE_KINDS: Final = {code: kind for kind, code in _KIND_TYPES.items()} | {b"\0": FILE, b"7": FILE}
# Records of extended headers that we use. What else stands there is not kept, so that a header with
# a hundred thousand of them costs its own size and no more.
_PAX_KEYS: Final = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))
_SPARSE: Final = "GNU.sparse"
_XATTR: Final = "SCHILY.xattr."  # how docker, containerd, bsdtar and GNU tar write them
_TIME: Final = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?")


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A file of a tar. `path` is clean: no root, no `.` or `..`; "" is the root itself.

    What was read: `data` is a slice of the tar at `data_offset`. A hard link's `link` is a clean
    path too; a symbolic link's is whatever was written there.
    """

    path: str
    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # seconds since 1970
    link: str = ""
    data_offset: int = 0
    data: bytes | memoryview = b""
    device: tuple[int, int] = (0, 0)  # major and minor number
    nanoseconds: int = 0  # of the time, on top of `mtime`
    xattrs: tuple[tuple[str, bytes], ...] = ()  # by name; read only where asked for


# --- writing -----------------------------------------------------------------------------------


def write_tar(entries: Iterable[TarEntry]) -> bytes:
    """The tar of these entries in this order, with two zero blocks at its end. Memory: besides the
    entries the tar, once."""
    out: list[bytes | memoryview] = []
    for entry in entries:
        _put_entry(out, entry)
    out.append(bytes(2 * BLOCK_SIZE))
    return b"".join(out)


def _put_entry(out: list[bytes | memoryview], entry: TarEntry) -> None:
    raw_path = entry.path.encode("utf-8", "surrogateescape")
    raw_path = (raw_path or b".") + (b"/" if entry.kind == FOLDER else b"")
    split = _split_path(raw_path)
    records = _records(entry, raw_path, split is not None)
    if records:
        out.append(_header(TarEntry("pax", FILE), b"", b"pax", b"x", len(records)))
        _put_padded(out, records)
    prefix, name = split or (b"", raw_path[-100:])
    size = len(entry.data) if len(entry.data) <= MAX_USTAR_SIZE else 0
    out.append(_header(entry, prefix, name, _KIND_TYPES[entry.kind], size))
    _put_padded(out, entry.data)


def _records(entry: TarEntry, raw_path: bytes, fits: bool) -> bytes:
    """What the fields of a ustar header cannot hold, as pax records."""
    raw_link = entry.link.encode("utf-8", "surrogateescape")
    records: list[tuple[bytes, bytes]] = []
    if not fits or not raw_path.isascii():
        records.append((b"path", raw_path))
    if len(raw_link) > 100 or not raw_link.isascii():
        records.append((b"linkpath", raw_link))
    if len(entry.data) > MAX_USTAR_SIZE:
        records.append((b"size", str(len(entry.data)).encode("ascii")))
    for key, owner in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if owner > MAX_USTAR_OWNER:
            records.append((key, str(owner).encode("ascii")))
    if entry.nanoseconds or not 0 <= entry.mtime <= MAX_USTAR_SIZE:
        records.append((b"mtime", _time_text(entry.mtime, entry.nanoseconds)))
    for name, value in entry.xattrs:
        records.append((_XATTR.encode() + name.encode("utf-8", "surrogateescape"), value))
    return b"".join(_pax_record(key, value) for key, value in records)


def _time_text(seconds: int, nanoseconds: int) -> bytes:
    total = seconds * 10**9 + nanoseconds
    whole, fraction = divmod(abs(total), 10**9)
    sign = "-" if total < 0 else ""
    return (f"{sign}{whole}" + (f".{fraction:09d}".rstrip("0") if fraction else "")).encode("ascii")


def _put_padded(out: list[bytes | memoryview], data: bytes | memoryview) -> None:
    out += (data, bytes(-len(data) % BLOCK_SIZE))


def _header(entry: TarEntry, prefix: bytes, name: bytes, kind: bytes, size: int) -> bytes:
    """One ustar header block, without names of users and groups."""
    mtime = entry.mtime if 0 <= entry.mtime <= MAX_USTAR_SIZE else 0
    uid, gid = (owner if owner <= MAX_USTAR_OWNER else 0 for owner in (entry.uid, entry.gid))
    block = bytearray(
        HEADER.pack(
            name,
            b"%07o" % entry.mode,
            b"%07o" % uid,
            b"%07o" % gid,
            b"%011o" % size,
            b"%011o" % mtime,
            b" " * 8,
            kind,
            entry.link.encode("utf-8", "surrogateescape")[:100],
            b"ustar",
            b"00",
            b"",
            b"",
            b"%07o" % entry.device[0],
            b"%07o" % entry.device[1],
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


def read_tar(data: bytes | memoryview, *, xattrs: bool = False) -> Iterator[TarEntry]:
    """Entries of a plain tar in order (ustar, pax, GNU long names); raises FormatError.

    Sparse files and unknown types are refused. Memory is bounded by `data`, one header at a time.
    `xattrs`: with extended attributes, of at most MAX_XATTRS_SIZE bytes an entry.
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
            extended |= _parse_pax(bytes(body), start, xattrs)
        elif kind == b"g":
            everywhere |= _parse_pax(bytes(body), start, xattrs)
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
    mtime, nanoseconds = _time(extended, fields[5], offset)
    return TarEntry(
        clean_path(raw_path.decode("utf-8", "surrogateescape")),
        kind,
        _number(fields[1], offset) & 0o7777,
        _bounded(_extended_number(extended, "uid", fields[2], offset), MAX_OWNER, offset),
        _bounded(_extended_number(extended, "gid", fields[3], offset), MAX_OWNER, offset),
        mtime,
        clean_path(link) if kind == HARDLINK else link if kind == SYMLINK else "",
        start,
        body,
        (_device(fields[13], offset), _device(fields[14], offset)) if is_device else (0, 0),
        nanoseconds,
        _xattrs(extended, offset),
    )


def _time(extended: Mapping[str, bytes], raw: bytes, offset: int) -> tuple[int, int]:
    """Seconds since 1970, down to the one before, and nanoseconds on top."""
    if "mtime" not in extended:
        return _bounded(_number(raw, offset), MAX_TIME, offset), 0
    found = _TIME.fullmatch(extended["mtime"])
    if found is None:
        raise FormatError(f"tar: {extended['mtime'][:40]!r} is not a time", offset=offset)
    fraction = int((found[3] or b"")[:9].ljust(9, b"0"))
    total = _bounded(int(found[2]), MAX_TIME, offset) * 10**9 + fraction
    return divmod(-total if found[1] else total, 10**9)


def _xattrs(extended: Mapping[str, bytes], offset: int) -> tuple[tuple[str, bytes], ...]:
    found = sorted((k[len(_XATTR) :], v) for k, v in extended.items() if k.startswith(_XATTR))
    if sum(len(name) + len(value) for name, value in found) > MAX_XATTRS_SIZE:
        raise FormatError("tar: extended attributes are over their limit", offset=offset)
    return tuple(found)


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
    """A pax value, else the header's field."""
    if key in extended:
        return _decimal(extended[key], offset)
    return _number(raw, offset)


def _parse_pax(body: bytes, offset: int, xattrs: bool) -> dict[str, bytes]:
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
        elif xattrs and key.startswith(_XATTR.encode()):
            records[key.decode("utf-8", "surrogateescape")] = value
        elif key.startswith(b"GNU.sparse"):
            records[_SPARSE] = value
        at = end
    return records

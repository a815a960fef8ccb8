"""Deltas between forms: `diff(olds, new)` makes one, `patch(olds, delta)` applies it.

Long equal runs are copied (`covers`), the rest goes through LZMA2 with the old bytes around it as a
dictionary (`primed`): near matches, moved bytes and bytes added are all its business. Several old
forms count as one, end to end. Sizes and digests of the old forms are checked before anything is
made, every length before it is used, the digest of the new form at the end.

Spec: docs/format.md "Delta". Limits: 2 GiB a side, 16 old forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.digest import sha256_digest
from layerkit.errors import FormatError, IntegrityError, VersionError
from layerkit.formats.cursor import Reader, Writer, unzigzag, zigzag
from layerkit.formats.delta import primed
from layerkit.formats.delta.covers import (
    Cover,
    Gap,
    choose_covers,
    find_runs,
    gaps_of,
    read_covers,
    write_covers,
)
from layerkit.formats.delta.far import Run, choose_far, read_far, write_far

__all__ = ["diff", "patch", "read_digests"]

MAGIC: Final = b"LKDE"
MAJOR: Final = 1
SIZE_LIMIT: Final = 1 << 31  # bytes of one side
OLD_LIMIT: Final = 16  # old forms of one delta
DIGEST_SIZE: Final = 16  # bytes of a SHA-256 in a delta (docs/decisions/0008)
WINDOW_SIZE: Final = 8 << 20  # bytes of gaps that one window codes; a gap has at most half of it
NEAR_SIZE: Final = 8 << 20  # bytes of old around the gaps in the dictionary of a window
FAR_SIZE: Final = 6 << 20  # bytes of other old blocks


@dataclass(frozen=True, slots=True)
class _Header:
    olds: tuple[tuple[int, bytes], ...]  # size, digest
    new_size: int
    new_digest: bytes


def diff(olds: Sequence[bytes], new: bytes) -> bytes:
    """A delta that turns `olds` into `new`. Memory: both sides three times, and
    300 MiB for a window."""
    if len(olds) > OLD_LIMIT or sum(map(len, olds)) > SIZE_LIMIT or len(new) > SIZE_LIMIT:
        raise FormatError("delta: over the size limits")
    old = olds[0] if len(olds) == 1 else b"".join(olds)
    covers = choose_covers(find_runs(old, new), len(old), len(new))
    delta = _serialize_header(olds, new) + _serialize_body(old, new, covers)
    if patch(olds, delta) != new:
        raise AssertionError("a fresh delta does not give its form back")
    return delta


def read_digests(delta: bytes) -> tuple[list[bytes], bytes, int]:
    """The first 16 bytes of the SHA-256 of the old forms and of the new one, the new one's size."""
    header = _read_header(Reader(delta, "delta"))
    return [digest for _, digest in header.olds], header.new_digest, header.new_size


def patch(
    olds: Sequence[bytes], delta: bytes, limit: int = SIZE_LIMIT, *, checks: bool = True
) -> bytes:
    """The new form, of at most `limit` bytes. Raises FormatError for a malformed delta,
    IntegrityError when the old forms are not the ones that it was made for, or the result is not
    what it promises; without `checks` the caller has verified the old forms by their digests and
    verifies the new one, so none is hashed a second time. Memory: both sides, the old one twice
    where it is several forms, and up to three times WINDOW_SIZE, NEAR_SIZE and FAR_SIZE."""
    reader = Reader(delta, "delta")
    header = _read_header(reader)
    if header.new_size > limit:
        raise FormatError(f"delta: a new form of {header.new_size} bytes is over {limit}")
    if len(olds) != len(header.olds):
        raise FormatError(f"delta: got {len(olds)} old forms, want {len(header.olds)}")
    for one, (size, digest) in zip(olds, header.olds, strict=True):
        if len(one) != size:
            raise IntegrityError("delta: another old form", got=f"{len(one)} bytes", want=str(size))
        if checks:
            _check(one, digest, "delta: another old form")
    old = olds[0] if len(olds) == 1 else b"".join(olds)
    new = _apply(reader, old, header.new_size)
    if checks:
        _check(new, header.new_digest, "delta: the result is wrong")
    return new


def _digest(data: bytes) -> bytes:
    return sha256_digest(data).raw[:DIGEST_SIZE]


def _check(data: bytes, want: bytes, what: str) -> None:
    got = _digest(data)
    if got != want:
        raise IntegrityError(what, got=got.hex(), want=want.hex())


def _serialize_header(olds: Sequence[bytes], new: bytes) -> bytes:
    writer = Writer()
    writer.raw(MAGIC)
    writer.u8(MAJOR)
    writer.varint(len(olds))
    for one in olds:
        writer.varint(len(one))
        writer.raw(_digest(one))
    writer.varint(zigzag(len(new) - sum(map(len, olds))))
    writer.raw(_digest(new))
    return writer.getvalue()


def _read_header(reader: Reader) -> _Header:
    if bytes(reader.take(4)) != MAGIC:
        raise FormatError("delta: no magic")
    if (major := reader.u8()) != MAJOR:
        raise VersionError(f"delta: got major version {major}, want {MAJOR}")
    olds = []
    for _ in range(reader.varint(OLD_LIMIT, "count of old forms")):
        size = reader.varint(SIZE_LIMIT, "size of an old form")
        olds.append((size, bytes(reader.take(DIGEST_SIZE))))
    total = sum(size for size, _ in olds)
    new_size = total + unzigzag(reader.varint(2 * SIZE_LIMIT, "growth of the new form"))
    if total > SIZE_LIMIT or not 0 <= new_size <= SIZE_LIMIT:
        raise reader.fail("the forms are over the size limit")
    return _Header(tuple(olds), new_size, bytes(reader.take(DIGEST_SIZE)))


def _serialize_body(old: bytes, new: bytes, covers: list[Cover]) -> bytes:
    """The covers, then for each window its far runs, its filler, its LZMA2 stream."""
    out = Writer()
    out.raw(write_covers(covers))
    windows = list(_windows(gaps_of(covers, len(old), len(new))))
    for window in windows:
        data = b"".join(new[gap.start : gap.start + gap.size] for gap in window)
        near = _near(old, window)
        far = choose_far(old, data, near, FAR_SIZE)
        out.raw(write_far(far))
        filler, stream = primed.compress(_join(old, far) + near, data)
        lean = primed.shrink(stream) if len(windows) == 1 else b""
        out.varint(filler << 1 | bool(lean))
        out.raw(lean or stream)
    return out.getvalue()


def _apply(reader: Reader, old: bytes, new_size: int) -> bytes:
    covers = read_covers(reader, len(old), new_size)
    view = memoryview(old)
    parts: dict[int, bytes | memoryview] = {
        cover.start: view[cover.source : cover.source + cover.size] for cover in covers
    }
    for window in _windows(gaps_of(covers, len(old), new_size)):
        far = read_far(reader, len(old), FAR_SIZE)
        code = reader.varint(primed.FILLER_LIMIT * primed.NOISE_COUNT << 1 | 1, "filler")
        size = sum(gap.size for gap in window)
        stream = bytes(reader.take(reader.left))
        if code & 1:  # it goes on to the end of the delta
            stream = primed.expand(stream, code >> 1, size)
        dictionary = [_join(old, far), _near(old, window)]
        data, rest = primed.decompress(dictionary, code >> 1, stream, size)
        reader = Reader(rest, "delta")
        at = 0
        for gap in window:
            parts[gap.start] = data[at : at + gap.size]
            at += gap.size
    reader.finish()
    return b"".join(parts[start] for start in sorted(parts))


def _windows(gaps: Iterator[Gap]) -> Iterator[list[Gap]]:
    """Gaps in groups of at most WINDOW_SIZE bytes."""
    window: list[Gap] = []
    size = 0
    for gap in gaps:
        if window and size + gap.size > WINDOW_SIZE:
            yield window
            window, size = [], 0
        window.append(gap)
        size += gap.size
    if window:
        yield window


def _near(old: bytes, window: list[Gap]) -> bytes:
    """The old bytes around the gaps, in their order, at most NEAR_SIZE of them."""
    runs, left = [], NEAR_SIZE
    for gap in window:
        for start, size in gap.near:
            runs.append((start, min(size, left)))
            left -= min(size, left)
    return _join(old, runs)


def _join(old: bytes, runs: Sequence[Run]) -> bytes:
    return b"".join(old[start : start + size] for start, size in runs)

"""Deltas between forms: `diff(olds, new)` makes one, `patch(olds, delta)` applies it.

A library finds the matches (content-defined chunks give the long ones, bsdiff4 the near ones in
what is left); the wire format and the applier are ours, and bounded: digests and sizes of the old
forms are checked before anything is written, the digest of the new one after. Several old forms
count as one, end to end.

Spec: docs/format.md "Delta". Limits: 2 GiB a side, 16 old forms.
"""

from __future__ import annotations

import bisect
import lzma
from collections.abc import Sequence
from typing import Final

import bsdiff4
import numpy as np
import numpy.typing as npt
import zstandard
from pyfastcdc import FastCDC

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError, IntegrityError, VersionError
from layerkit.formats.cursor import Reader, Writer, unzigzag, zigzag

__all__ = ["diff", "patch", "read_digests"]

MAGIC: Final = b"LKDE"
MAJOR: Final = 0
SIZE_LIMIT: Final = 1 << 31  # bytes of one side
OLD_LIMIT: Final = 16  # old forms of one delta
ANCHOR_SIZE: Final = 512  # average bytes of the chunks that find the long matches
FUZZY_LIMIT: Final = 24 << 20  # bytes: above it bsdiff4's suffix array takes too long and too much
# What the parts of a delta cost, in bytes after compression; measured on edits of a 6 MB form
COMMAND_COST: Final = 1.6
LITERAL_COST: Final = 0.8
DIFFER_COST: Final = 1.4
LOOK_BACK: Final = 12  # matches
BIG_MATCH: Final = 1 << 14  # bytes; a match as long always pays
PACK_RAW, PACK_LZMA, PACK_ZSTD = 0, 1, 2
_LZMA: Final = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 24, "lc": 1, "lp": 0, "pb": 0}
ZSTD_LEVEL: Final = 19
ZSTD_MIN: Final = 1 << 16  # bytes of commands: below it loading the old forms gains nothing

Bytes8 = npt.NDArray[np.uint8]
Match = tuple[int, int, int]  # position in new, position in old, bytes


def diff(olds: Sequence[bytes], new: bytes) -> bytes:
    """A delta that turns `olds` into `new`."""
    if len(olds) > OLD_LIMIT or sum(map(len, olds)) > SIZE_LIMIT or len(new) > SIZE_LIMIT:
        raise FormatError("delta: over the size limits")
    old = olds[0] if len(olds) == 1 else b"".join(olds)
    matches = _find_matches(old, new)
    payload = _serialize_commands(old, new, matches)
    pack, packed = _pack(payload, old)
    writer = Writer()
    writer.raw(MAGIC)
    writer.u8(MAJOR)
    writer.u8(pack)
    writer.varint(len(olds))
    for one in olds:
        writer.varint(len(one))
        writer.raw(sha256_digest(one).raw)
    writer.varint(len(new))
    writer.raw(sha256_digest(new).raw)
    writer.varint(len(payload))
    writer.raw(packed)
    delta = writer.getvalue()
    if patch(olds, delta) != new:
        raise AssertionError("a fresh delta does not give its form back")
    return delta


def read_digests(delta: bytes) -> tuple[list[Digest], Digest, int]:
    """The digests of the old forms and of the new one, and the new one's size."""
    _, olds, new, size, _ = _read_header(Reader(delta, "delta"))
    return [digest for digest, _ in olds], new, size


def patch(olds: Sequence[bytes], delta: bytes, limit: int = SIZE_LIMIT) -> bytes:
    """The new form, of at most `limit` bytes. Raises FormatError for a malformed delta,
    IntegrityError when the old forms are not the ones that it was made for, or the result is not
    what it promises. Memory: both sides, and four times the new one at worst."""
    reader = Reader(delta, "delta")
    pack, wanted, new_digest, new_size, payload_size = _read_header(reader)
    if new_size > limit:
        raise FormatError(f"delta: a new form of {new_size} bytes is over the limit of {limit}")
    if len(olds) != len(wanted):
        raise FormatError(f"delta: got {len(olds)} old forms, want {len(wanted)}")
    for one, (digest, size) in zip(olds, wanted, strict=True):
        got = sha256_digest(one)
        if len(one) != size or got != digest:
            raise IntegrityError("delta: another old form", got=str(got), want=str(digest))
    old = olds[0] if len(olds) == 1 else b"".join(olds)
    payload = _unpack(pack, bytes(reader.take(reader.left)), old, payload_size)
    new = _apply(Reader(payload, "delta commands"), old, new_size)
    got = sha256_digest(new)
    if got != new_digest:
        raise IntegrityError("delta: the result is wrong", got=str(got), want=str(new_digest))
    return new


def _read_header(
    reader: Reader,
) -> tuple[int, list[tuple[Digest, int]], Digest, int, int]:
    if bytes(reader.take(4)) != MAGIC:
        raise FormatError("delta: no magic")
    if (major := reader.u8()) != MAJOR:
        raise VersionError(f"delta: got major version {major}, want {MAJOR}")
    pack = reader.u8()
    if pack > PACK_ZSTD:
        raise reader.fail("unknown compression")
    olds = []
    for _ in range(reader.varint(OLD_LIMIT, "count of old forms")):
        size = reader.varint(SIZE_LIMIT, "size of an old form")
        olds.append((Digest("sha256", bytes(reader.take(32))), size))
    if sum(size for _, size in olds) > SIZE_LIMIT:
        raise reader.fail("old forms are over the size limit")
    new_size = reader.varint(SIZE_LIMIT, "size of the new form")
    new = Digest("sha256", bytes(reader.take(32)))
    # each command byte is used at least once for the new form or its positions in it
    payload_size = reader.varint(4 * new_size + 4096, "size of the commands")
    return pack, olds, new, new_size, payload_size


# --- matches


def _find_matches(old: bytes, new: bytes) -> list[Match]:
    """Matches in the order of `new`, not overlapping there; bytes in them may differ a little."""
    long = _anchors(old, new)
    gaps_new = _gaps([(n, size) for n, _, size in long], len(new))
    gaps_old = _gaps(_merge([(o, size) for _, o, size in long]), len(old))
    near = _near_matches(old, new, gaps_old, gaps_new)
    return _choose(old, new, sorted(long + near))


def _choose(old: bytes, new: bytes, matches: list[Match]) -> list[Match]:
    """The matches that pay: a short one far away costs more as a command than as bytes. Shortest
    path over the matches, each reached from the LOOK_BACK before it; costs in bytes, estimated."""
    joined = _join_matches(matches)
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    best: list[float] = []
    came: list[int] = []
    for index, (start, source, size) in enumerate(joined):
        differ = 0
        if size < BIG_MATCH:
            differ = int(np.count_nonzero(a[source : source + size] != b[start : start + size]))
        own = COMMAND_COST + DIFFER_COST * differ
        cost, choice = own + LITERAL_COST * start + _seek_cost(source), -1
        for back in range(index - 1, max(-1, index - 1 - LOOK_BACK), -1):
            at, place, length = joined[back]
            step = best[back] + own + LITERAL_COST * (start - at - length)
            step += _seek_cost(source - place - length)
            if step < cost:
                cost, choice = step, back
        best.append(cost)
        came.append(choice)
    if not joined:
        return []
    ends = [best[i] + LITERAL_COST * (len(new) - n - size) for i, (n, _, size) in enumerate(joined)]
    at = min(range(len(ends)), key=ends.__getitem__)
    chosen = []
    while at >= 0:
        chosen.append(joined[at])
        at = came[at]
    return chosen[::-1]


def _seek_cost(seek: int) -> float:
    """Bytes that a seek takes as a varint, about."""
    return 0.4 if seek == 0 else 0.6 + abs(seek).bit_length() / 8


def _anchors(old: bytes, new: bytes) -> list[Match]:
    """Equal runs, found by equal content-defined chunks and grown to both sides."""
    known: dict[bytes, int] = {}
    cutter = FastCDC(avg_size=ANCHOR_SIZE, min_size=ANCHOR_SIZE // 4, max_size=ANCHOR_SIZE * 8)
    for chunk in cutter.cut_buf(old):
        known.setdefault(bytes(chunk.data), chunk.offset)
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    matches: list[Match] = []
    end_new = end_old = 0
    for chunk in cutter.cut_buf(new):
        start, size = chunk.offset, chunk.length
        if start + size <= end_new:
            continue
        ahead = start - end_new + end_old  # the place that goes on the match before it
        text = bytes(chunk.data)
        at = ahead if matches and old[ahead : ahead + size] == text else known.get(text, -1)
        if at < 0:
            continue
        if start < end_new:  # the match before it grew into this chunk
            start, at, size = end_new, at + end_new - start, size - end_new + start
        back = _common_back(a[:at], b[end_new:start])
        forward = _common(a[at + size :], b[start + size :])
        match = (start - back, at - back, back + size + forward)
        if matches and match[0] == end_new and match[1] == end_old:
            last = matches.pop()
            match = (last[0], last[1], last[2] + match[2])
        matches.append(match)
        end_new, end_old = match[0] + match[2], match[1] + match[2]
    return matches


def _common(a: Bytes8, b: Bytes8) -> int:
    """Bytes that two arrays have in common at their starts."""
    size, step = min(len(a), len(b)), 256
    done = 0
    while done < size:
        part = min(step, size - done)
        differ = np.flatnonzero(a[done : done + part] != b[done : done + part])
        if len(differ):
            return done + int(differ[0])
        done += part
        step = min(step * 4, 1 << 22)
    return done


def _common_back(a: Bytes8, b: Bytes8) -> int:
    size = min(len(a), len(b))
    return _common(a[len(a) - size :][::-1], b[len(b) - size :][::-1])


def _gaps(runs: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """What sorted runs (position, bytes) leave out of 0 .. end."""
    gaps, at = [], 0
    for start, size in runs:
        if start > at:
            gaps.append((at, start - at))
        at = max(at, start + size)
    if end > at:
        gaps.append((at, end - at))
    return gaps


def _merge(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(runs)


def _near_matches(
    old: bytes, new: bytes, gaps_old: list[tuple[int, int]], gaps_new: list[tuple[int, int]]
) -> list[Match]:
    """bsdiff4's near matches between what the anchors leave of both sides."""
    if not gaps_old or not gaps_new:
        return []
    rest_old = b"".join(old[at : at + size] for at, size in gaps_old)
    rest_new = b"".join(new[at : at + size] for at, size in gaps_new)
    if len(rest_old) + len(rest_new) > FUZZY_LIMIT:
        return []
    control, _, _ = bsdiff4.core.diff(rest_old, rest_new)
    found: list[Match] = []
    at_new = at_old = 0
    for add, insert, seek in _triples(control):
        if add > 0:
            found += _split(at_new, at_old, add, gaps_new, gaps_old)
        at_new += add + insert
        at_old += add + seek
    return found


def _triples(control: bytes) -> list[tuple[int, int, int]]:
    """bsdiff4's control block: bytes added, bytes inserted, seek in old; 8 bytes each, the sign in
    the top bit. Source: bsdiff 4.3, bspatch.c offtin."""
    raw = np.frombuffer(control, "<u8")
    size = (raw & np.uint64((1 << 63) - 1)).astype(np.int64)
    flat = np.where(raw >> np.uint64(63), -size, size).tolist()
    return list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))


def _split(
    at_new: int,
    at_old: int,
    size: int,
    gaps_new: list[tuple[int, int]],
    gaps_old: list[tuple[int, int]],
) -> list[Match]:
    """One match between the joined gaps as matches between the files."""
    starts_new, starts_old = _joined(gaps_new), _joined(gaps_old)
    found = []
    while size > 0:
        i = bisect.bisect_right(starts_new, at_new) - 1
        j = bisect.bisect_right(starts_old, at_old) - 1
        into_new, into_old = at_new - starts_new[i], at_old - starts_old[j]
        part = min(size, gaps_new[i][1] - into_new, gaps_old[j][1] - into_old)
        found.append((gaps_new[i][0] + into_new, gaps_old[j][0] + into_old, part))
        at_new, at_old, size = at_new + part, at_old + part, size - part
    return found


def _joined(gaps: list[tuple[int, int]]) -> list[int]:
    total, starts = 0, []
    for _, size in gaps:
        starts.append(total)
        total += size
    return starts


# --- commands


def _serialize_commands(old: bytes, new: bytes, matches: list[Match]) -> bytes:
    """Six streams one behind the other, each of one kind since that compresses better: bytes
    inserted before each copy, bytes copied, how far a copy's start is from the end of the one
    before, places of the bytes that differ in copies, their values, inserted bytes."""
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    gaps, sizes, seeks, places = Writer(), Writer(), Writer(), Writer()
    values, inserts = bytearray(), bytearray()
    at_new = at_old = 0
    copied = last = 0  # bytes copied so far; end of the last run of differing bytes among them
    merged = _join_matches(matches)
    for start, source, size in [*merged, (len(new), at_old, 0)]:
        inserts += new[at_new:start]
        gaps.varint(start - at_new)
        if size:
            sizes.varint(size)
            seeks.varint(zigzag(source - at_old))
            differ = np.flatnonzero(a[source : source + size] != b[start : start + size])
            for low, high in _runs(differ):
                places.varint(copied + low - last)
                places.varint(high - low)
                values += (
                    b[start + low : start + high] - a[source + low : source + high]
                ).tobytes()
                last = copied + high
            copied += size
        at_new, at_old = start + size, source + size
    out = Writer()
    for writer in (gaps, sizes, seeks, places):
        out.sized(writer.getvalue())
    out.sized(values)
    out.sized(inserts)
    return out.getvalue()


def _join_matches(matches: list[Match]) -> list[Match]:
    joined: list[Match] = []
    for match in matches:
        if joined:
            n, o, size = joined[-1]
            if n + size == match[0] and o + size == match[1]:
                joined[-1] = (n, o, size + match[2])
                continue
        joined.append(match)
    return joined


def _runs(index: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending indexes as runs (first, past the last)."""
    if not len(index):
        return []
    cut = np.flatnonzero(np.diff(index) > 1)
    low = index[np.concatenate(([0], cut + 1))]
    high = index[np.concatenate((cut, [len(index) - 1]))] + 1
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _apply(reader: Reader, old: bytes, new_size: int) -> bytes:
    """Run the commands; every length is checked against what is left before it is used."""
    names = ("gaps", "sizes", "seeks", "places", "values", "inserts")
    streams = [Reader(reader.sized(reader.left, name), f"delta {name}") for name in names]
    reader.finish()
    gaps, sizes, seeks, places, values, inserts = streams
    out = bytearray()
    at_old = 0
    copies: list[tuple[int, int]] = []  # where each copy lies in the new form
    while gaps.left:
        out += inserts.take(gaps.varint(new_size - len(out), "bytes inserted"))
        if not gaps.left:
            break  # the last gap ends the new form
        size = sizes.varint(new_size - len(out), "bytes copied")
        source = at_old + unzigzag(seeks.varint(1 << 33, "seek"))
        if not size or source < 0 or source + size > len(old):
            raise sizes.fail("a copy lies outside the old forms")
        copies.append((len(out), size))
        out += old[source : source + size]
        at_old = source + size
    if len(out) != new_size:
        raise gaps.fail(f"makes {len(out)} bytes, want {new_size}")
    _fix_copies(out, copies, places, values)
    for stream in streams:
        stream.finish()
    return bytes(out)


def _fix_copies(
    out: bytearray, copies: list[tuple[int, int]], places: Reader, values: Reader
) -> None:
    """Add the differing bytes: places count through the copies, one behind the other."""
    ends, total = [], 0
    for _, size in copies:
        total += size
        ends.append(total)
    at = 0
    while places.left:
        at += places.varint(total - at, "gap")
        size = places.varint(total - at, "run")
        run = values.take(size)
        index = bisect.bisect_right(ends, at)
        if not size or at + size > ends[index]:
            raise places.fail("a run of differing bytes leaves its copy")
        start = copies[index][0] + copies[index][1] - (ends[index] - at)
        for k, value in enumerate(run):
            out[start + k] = (out[start + k] + value) & 0xFF
        at += size


# --- compression of the commands


def _pack(payload: bytes, old: bytes) -> tuple[int, bytes]:
    """The smallest of raw, LZMA, and zstd that may refer to the old forms."""
    best = (PACK_RAW, payload)
    coder = lzma.LZMACompressor(
        lzma.FORMAT_RAW, filters=[{**_LZMA, "preset": 9 | lzma.PRESET_EXTREME}]
    )
    packed = coder.compress(payload) + coder.flush()
    if len(packed) < len(best[1]):
        best = (PACK_LZMA, packed)
    if len(payload) > ZSTD_MIN:
        packed = _zstd_coder(old, len(payload)).compress(payload)
        if len(packed) < len(best[1]):
            best = (PACK_ZSTD, packed)
    return best


def _zstd_coder(old: bytes, size: int) -> zstandard.ZstdCompressor:
    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    log = min(31, max(10, (len(old) + size).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, window_log=log, enable_ldm=True, source_size=size, dict_size=len(old)
    )
    return zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters)


def _unpack(pack: int, packed: bytes, old: bytes, size: int) -> bytes:
    """The commands; never more than `size` bytes, which the header's limit bounds."""
    if pack == PACK_RAW:
        payload = packed
    elif pack == PACK_LZMA:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_LZMA])
        try:
            payload = decoder.decompress(packed, max_length=size + 1)
        except (lzma.LZMAError, EOFError) as exc:
            raise FormatError("delta: the commands do not decompress") from exc
        if decoder.unused_data or not decoder.eof:
            raise FormatError("delta: bytes follow the commands, or are missing")
    else:
        prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        try:
            if zstandard.frame_content_size(packed) != size:
                raise FormatError("delta: the commands have another size than declared")
            unpacker = zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=1 << 31)
            stream = unpacker.decompressobj()
            payload = stream.decompress(packed)
            if stream.unused_data or not stream.eof:
                raise FormatError("delta: bytes follow the commands, or are missing")
        except zstandard.ZstdError as exc:
            raise FormatError("delta: the commands do not decompress") from exc
    if len(payload) != size:
        raise FormatError(f"delta: got {len(payload)} bytes of commands, want {size}")
    return payload

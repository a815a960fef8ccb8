"""The bytes of a form: header, label table in columns, exceptions, body.

`serialize_form` and `parse_form` are twins; whatever the bytes, parsing raises only FormatError and
allocates no more than a small multiple of what is there. Spec: docs/format.md "Address-free form".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from layerkit.errors import FormatError, VersionError
from layerkit.formats.addressfree import model
from layerkit.formats.addressfree.model import Int64s, Kind, Labels, Measure, Pattern, Region
from layerkit.formats.addressfree.rewriting import Exceptions
from layerkit.formats.cursor import Reader, Writer, unzigzag, zigzag
from layerkit.formats.packed import read_varints, write_varints
from layerkit.formats.sites import ARM64

__all__ = ["parse_labels", "read_column", "serialize_labels", "write_column"]

MAGIC: Final = b"LKAF"
KIND_RAW: Final = 0  # no labels; the body is the binary
KIND_GO: Final = 1
BLOB_MAGIC: Final = b"LKLB"
SIZE_LIMIT: Final = 1 << 31  # bytes of a binary: offsets in Go's own tables are 32 bits
MAJOR: Final = 1
MINOR: Final = 0
COUNT_LIMIT: Final = 1 << 26  # labels of one binary: over a hundred times the largest seen
SMALL_LIMIT: Final = 1 << 16  # regions, kinds, patterns, fields of a pattern
FIELD_LIMIT: Final = 1 << 17  # fields of all patterns: the largest binaries have a thousand
LABEL_SIZE: Final = 4  # bytes of body for each label beyond SMALL_LIMIT; of binaries 60 and more
COUNTER_LIMIT: Final = 64  # NEW counters; 15 are used
MEASURE_LIMIT: Final = 1 << 12  # some 200 are used
ADDR_LIMIT: Final = (1 << 63) - 1

RegionRule = tuple[int, int, int, int]  # flags, space, alignment or address, file position


def write_column(writer: Writer, values: Int64s) -> None:
    """A count, and a sized run of varints, all values below 2^63."""
    writer.varint(len(values))
    writer.sized(write_varints(values).tobytes())


def read_column(reader: Reader, name: str, limit: int, most: int = COUNT_LIMIT) -> Int64s:
    """The twin of `write_column`; every value is at most `limit`, and there are at most `most`."""
    count = reader.varint(most, f"count of {name}")
    raw = np.frombuffer(reader.sized(most * 9, name), np.uint8)
    try:
        value = read_varints(raw, count)
    except FormatError as exc:
        raise reader.fail(f"{name}: {exc.message}") from exc
    if count and (int(value.max()) > limit or int(value.min()) < 0):
        raise reader.fail(f"a value in {name} is over its limit {limit}")
    return value


def serialize_form(kind: int, labels: bytes | memoryview, body: bytes | memoryview) -> bytes:
    """A form of its two parts; a raw one has no labels. Memory: the form, once."""
    return b"".join((serialize_head(kind, labels, len(body)), body))


def serialize_head(kind: int, labels: bytes | memoryview, body_size: int) -> bytes:
    """A form up to its body."""
    head = Writer()
    head.raw(MAGIC)
    head.u8(MAJOR)
    head.u8(MINOR)
    head.u8(kind)
    head.sized(labels)
    head.varint(body_size)
    return head.getvalue()


def parse_form(form: bytes | memoryview) -> tuple[int, memoryview, memoryview]:
    """Kind, label table and body."""
    reader = Reader(form, "form")
    kind = check_header(reader)
    if kind not in (KIND_RAW, KIND_GO):
        raise reader.fail(f"kind {kind} is not known")
    labels = reader.sized(SIZE_LIMIT, "labels")
    body = reader.sized(SIZE_LIMIT, "body")
    reader.finish()
    if kind == KIND_RAW and len(labels):
        raise reader.fail("a raw form has labels")
    return kind, labels, body


def serialize_labels(labels: Labels, skip: Int64s) -> bytes:
    """The label table with the exceptions of the code."""
    writer = Writer()
    writer.u32(labels.salt)
    writer.u8(labels.machine)
    _write_regions(writer, labels)
    writer.varint(len(labels.kinds))
    for kind in labels.kinds:
        writer.varint(kind.base_region)
        writer.varint(zigzag(kind.base_delta))
        writer.u8(kind.shift | kind.is_name << 7)
        writer.varint(kind.counter + 1)
        writer.varint(kind.zone + 1)
        writer.varint(kind.zone_pattern + 1)
    _write_patterns(writer, labels.patterns)
    counts = np.bincount(labels.region_of, minlength=len(labels.regions))
    write_column(writer, counts.astype(np.int64))
    # one record a label, so that a new label is one change and not three
    records = np.stack([labels.size, labels.pattern * model.RULE_COUNT + labels.rule], axis=1)
    write_column(writer, records.reshape(-1))
    writer.sized(labels.explicit.astype("<u4").tobytes())
    write_column(writer, np.diff(skip, prepend=0))
    measures = [
        (m.region + 1, m.offset, m.width, m.high, m.low, m.shift, m.add) for m in labels.measures
    ]
    write_column(writer, np.array(measures, np.int64).reshape(-1))
    return writer.getvalue()


_WORDS, _TEXT, _FILE, _ADDR_FOLLOWS, _OFFSET_FOLLOWS = 1, 2, 4, 8, 16


def _write_regions(writer: Writer, labels: Labels) -> None:
    """Regions by what they follow from: an address is usually the end of the region before it,
    rounded up, and so is a file position; then an edit that moves everything changes nothing."""
    writer.varint(len(labels.regions))
    end = end_offset = 0
    for region in labels.regions:
        align = _alignment(end, region.addr)
        flags = _WORDS * region.has_words | _TEXT * region.is_text | _FILE * (region.offset >= 0)
        flags |= _ADDR_FOLLOWS * (align >= 0)
        follow = region.offset >= 0 and (region.offset - end_offset == region.addr - end)
        flags |= _OFFSET_FOLLOWS * follow
        writer.u8(flags)
        writer.u8(region.space)
        if align >= 0:
            writer.u8(align)
        else:
            writer.varint(region.addr)
        if region.offset >= 0 and not follow:
            writer.varint(region.offset)
        end = region.addr + region.size
        if region.offset >= 0:
            end_offset = region.offset + region.size


def _alignment(end: int, addr: int) -> int:
    """The largest power of two up to 2^16 (as its logarithm) that rounds `end` up to `addr`."""
    if not end or addr < end:
        return -1
    for shift in (12, 6, 5, 4, 3, 2, 1, 0, 13, 14, 15, 16):
        if -(-end >> shift) << shift == addr:
            return shift
    return -1


def _write_patterns(writer: Writer, patterns: tuple[Pattern, ...]) -> None:
    """Two columns: seven numbers a pattern, then two a field (distance from the field before it in
    its group, kind)."""
    heads: list[int] = []
    fields: list[int] = []
    for pattern in patterns:
        heads += [pattern.derived, *pattern.key, pattern.start, pattern.stride]
        for group in (pattern.fixed, pattern.repeated):
            heads.append(len(group))
            last = 0
            for offset, kind in group:
                fields += [zigzag(offset - last), kind]
                last = offset
    write_column(writer, np.array(heads, np.int64))
    write_column(writer, np.array(fields, np.int64))


def parse_labels(data: bytes | memoryview, body_size: int) -> tuple[Labels, Int64s]:
    """The label table for a body of `body_size` bytes, and the exceptions."""
    reader = Reader(data, "labels")
    salt, machine = reader.u32(), reader.u8()
    if machine > ARM64:
        raise reader.fail(f"machine {machine} is not known")
    flags_at = _read_region_rules(reader)
    region_count = len(flags_at)
    kinds = _read_kinds(reader, region_count)
    patterns = _read_patterns(reader, len(kinds))
    counts = read_column(reader, "label counts", COUNT_LIMIT, SMALL_LIMIT)
    most = min(COUNT_LIMIT, 2 * (SMALL_LIMIT + body_size // LABEL_SIZE))
    records = read_column(reader, "label records", ADDR_LIMIT >> 8, most)
    if len(records) % 2:
        raise reader.fail("half a label record")
    if len(records) and int(records[1::2].max()) // model.RULE_COUNT >= len(patterns):
        raise reader.fail("a label has a pattern that is not there")
    size = records[0::2].copy()
    pattern = (records[1::2] // model.RULE_COUNT).astype(np.int32)
    rule = records[1::2].astype(np.uint8) % np.uint8(model.RULE_COUNT)
    del records
    raw_explicit = reader.sized(COUNT_LIMIT * 4, "explicit ids")
    skip = np.cumsum(read_column(reader, "exceptions", body_size))
    measures = _read_measures(reader, region_count)
    reader.finish()
    count = len(size)
    if len(counts) != region_count or int(counts.sum()) != count or (counts < 1).any():
        raise reader.fail("label counts do not add up")
    if len(raw_explicit) % 4:
        raise reader.fail("explicit ids are cut")
    if (rule[np.cumsum(counts) - counts] == model.RULE_CONT).any():
        raise reader.fail("the first label of a region goes on another")
    explicit = np.frombuffer(raw_explicit, "<u4")
    if len(explicit) != int((rule == model.RULE_EXPLICIT).sum()):
        raise reader.fail("explicit ids do not match their labels")
    if len(size) and float(size.sum(dtype=np.float64)) > ADDR_LIMIT / 4:
        raise reader.fail("labels are longer than an address space")
    regions = _place_regions(reader, flags_at, counts, size, body_size)
    region_of = np.repeat(np.arange(region_count, dtype=np.int32), counts)
    start = np.cumsum(size) - size
    if count:
        addr = np.array([r.addr for r in regions], np.int64)
        start += (addr - start[np.cumsum(counts) - counts])[region_of]
    for kind in kinds:
        if kind.zone >= region_count or kind.zone_pattern >= len(patterns):
            raise reader.fail("a kind names a region or pattern that is not there")
    return Labels(
        regions,
        kinds,
        patterns,
        region_of,
        start,
        size,
        pattern,
        rule,
        explicit,
        salt,
        machine,
        measures,
    ), skip


def serialize_blob(labels: bytes, body_size: int, exceptions: Exceptions) -> bytes:
    """The labels blob, which with a binary of `body_size` bytes gives the form. No labels: raw."""
    writer = Writer()
    writer.raw(BLOB_MAGIC)
    writer.u8(MAJOR)
    writer.varint(body_size)
    writer.sized(labels)
    write_column(writer, np.diff(exceptions.words, prepend=0))
    write_column(writer, np.diff(exceptions.sites, prepend=0))
    return writer.getvalue()


def parse_blob(blob: bytes | memoryview) -> tuple[memoryview, int, Exceptions]:
    """The label table's bytes, the size of the binary, and the exceptions."""
    reader = Reader(blob, "labels blob")
    if bytes(reader.take(4)) != BLOB_MAGIC:
        raise reader.fail("no magic")
    if (major := reader.u8()) != MAJOR:
        raise VersionError(f"labels blob: got major version {major}, want {MAJOR}")
    size = reader.varint(SIZE_LIMIT, "size of the binary")
    labels = reader.sized(SIZE_LIMIT, "labels")
    words = np.cumsum(read_column(reader, "exceptions among words", size))
    sites = np.cumsum(read_column(reader, "exceptions among sites", size))
    reader.finish()
    for places in (words, sites):
        if len(places) and int(places.max()) > size:
            raise reader.fail("an exception lies outside the binary")
    return labels, size, Exceptions(words, sites)


def _read_measures(reader: Reader, region_count: int) -> tuple[Measure, ...]:
    column = read_column(reader, "measures", SIZE_LIMIT, 7 * MEASURE_LIMIT)
    if len(column) % 7:
        raise reader.fail("measures are cut")
    found = []
    for region, offset, width, high, low, shift, add in column.reshape(-1, 7).tolist():
        if region > region_count or max(high, low) > 4 * region_count or shift > 31:
            raise reader.fail("a measure names a boundary that is not there")
        if width not in (4, 8):
            raise reader.fail("a measured number is of no known width")
        found.append(Measure(region - 1, offset, width, high, low, shift, add))
    return tuple(found)


def _read_region_rules(reader: Reader) -> list[RegionRule]:
    """Per region: flags, space, alignment or address, file position (or -1)."""
    found: list[RegionRule] = []
    for _ in range(reader.varint(SMALL_LIMIT, "count of regions")):
        flags = reader.u8()
        if flags >= 32:
            raise reader.fail("a region has flags that are not known")
        space = reader.u8()
        if flags & _ADDR_FOLLOWS:
            place = reader.u8()
            if place > 16:
                raise reader.fail("a region's alignment is over 2^16")
        else:
            place = reader.varint(ADDR_LIMIT >> 1, "address of a region")
        explicit = flags & _FILE and not flags & _OFFSET_FOLLOWS
        offset = reader.varint(ADDR_LIMIT >> 1, "offset of a region") if explicit else -1
        found.append((flags, space, place, offset))
    return found


def _place_regions(
    reader: Reader,
    rules: list[RegionRule],
    counts: Int64s,
    size: Int64s,
    body_size: int,
) -> tuple[Region, ...]:
    bounds = np.concatenate(([0], np.cumsum(size)))[np.concatenate(([0], np.cumsum(counts)))]
    end = end_offset = 0
    regions = []
    for (flags, space, place, offset), extent in zip(rules, np.diff(bounds).tolist(), strict=True):
        addr = -(-end >> place) << place if flags & _ADDR_FOLLOWS else place
        if addr < end:
            raise reader.fail("regions overlap")
        if flags & _OFFSET_FOLLOWS:
            offset = end_offset + addr - end
        if flags & _FILE and offset + extent > body_size:
            raise reader.fail("a region lies outside the file")
        end = addr + extent
        if flags & _FILE:
            end_offset = offset + extent
        if end > ADDR_LIMIT >> 1:
            raise reader.fail("a region lies outside the address space")
        regions.append(
            Region(
                addr,
                offset if flags & _FILE else -1,
                extent,
                bool(flags & _WORDS),
                bool(flags & _TEXT),
                space,
            )
        )
    if sum(region.size for region in regions if region.offset >= 0) > body_size:
        raise reader.fail("regions share parts of the file")
    return tuple(regions)


def _read_kinds(reader: Reader, region_count: int) -> tuple[Kind, ...]:
    kinds = []
    for _ in range(reader.varint(SMALL_LIMIT, "count of kinds")):
        region = reader.varint(SMALL_LIMIT, "region of a kind")
        delta = unzigzag(reader.varint(ADDR_LIMIT, "delta of a kind"))
        shift = reader.u8()
        counter = reader.varint(COUNTER_LIMIT, "counter of a kind") - 1
        zone = reader.varint(SMALL_LIMIT, "zone of a kind") - 1
        pattern = reader.varint(SMALL_LIMIT, "zone pattern of a kind") - 1
        if region >= region_count or shift & 0x7F > 31 or (counter >= 0 and zone < 0):
            raise reader.fail("a kind names a region that is not there")
        kinds.append(Kind(region, delta, shift & 0x7F, counter, zone, pattern, bool(shift >> 7)))
    return tuple(kinds)


def _read_patterns(reader: Reader, kind_count: int) -> tuple[Pattern, ...]:
    heads = read_column(reader, "patterns", SMALL_LIMIT, 7 * SMALL_LIMIT)
    columns = read_column(reader, "fields of patterns", 1 << 33, 2 * FIELD_LIMIT)
    if len(heads) % 7 or len(columns) % 2:
        raise reader.fail("patterns are cut")
    count = len(heads) // 7
    sizes = heads.reshape(count, 7)[:, 5:].reshape(-1)
    if int(sizes.sum()) != len(columns) // 2:
        raise reader.fail("fields of patterns do not match their counts")
    if len(columns) and int(columns[1::2].max()) >= kind_count:
        raise reader.fail("a field is of a kind that is not there")
    raw = columns[0::2]
    steps = np.where(raw & 1, -((raw + 1) >> 1), raw >> 1)
    pairs = list(zip(_sum_groups(steps, sizes).tolist(), columns[1::2].tolist(), strict=True))
    if any(offset < 0 for offset, _ in pairs):
        raise reader.fail("a field lies before its label")
    patterns, at = [], 0
    rows = heads.reshape(count, 7).tolist()
    for derived, key, key_size, start, stride, fixed, repeated in rows:
        if derived > model.DERIVED_FIPS_SUM or (repeated and stride < 4):
            raise reader.fail("a pattern is of no known shape")
        middle, end = at + fixed, at + fixed + repeated
        patterns.append(
            Pattern(
                tuple(pairs[at:middle]),
                start,
                stride,
                tuple(pairs[middle:end]),
                derived,
                (key, key_size),
            )
        )
        at = end
    return tuple(patterns)


def _sum_groups(steps: Int64s, sizes: Int64s) -> Int64s:
    """Running sums that begin anew with each group."""
    total: Int64s = np.cumsum(steps)
    first = np.cumsum(sizes) - sizes
    before = np.concatenate(([0], total))[first]
    out: Int64s = total - np.repeat(before, sizes)
    return out


def check_header(reader: Reader) -> int:
    """Magic and version; returns the kind byte."""
    if bytes(reader.take(4)) != MAGIC:
        raise FormatError("form: no magic")
    major, _minor = reader.u8(), reader.u8()
    if major != MAJOR:
        raise VersionError(f"form: got major version {major}, want {MAJOR}")
    return reader.u8()

"""The label table of a form, and the arithmetic that encoder and decoder share.

A binary's address space is cut into **labels**: runs of bytes, in address order, that lie inside
**regions** (sections, and the subtables of .gopclntab). A label has a pattern (which of its bytes
are **fields** that hold the place of another label) and a rule (how its 32-bit id follows from
things that do not move). The form is the file with each field rewritten to its target's id.

Nothing here knows Go or a machine: kinds and patterns travel in the form.
Spec: docs/format.md "Address-free form".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from layerkit.errors import FormatError
from layerkit.formats import kernel
from layerkit.formats.packed import clear, read_u32, read_u64, write_u32, write_u64

__all__ = [
    "Bytes8",
    "Fields",
    "Int32s",
    "Int64s",
    "Kind",
    "Labels",
    "Measure",
    "Pattern",
    "Region",
    "Uint16s",
    "Uint32s",
    "clear",
    "clear_fields",
    "content_ids",
    "copy_numbers",
    "derive_ids",
    "expand_fields",
    "find_heads",
    "find_tagged_words",
    "fold_one",
    "hash_bytes",
    "read_fields",
    "read_u32",
    "read_u64",
    "write_u32",
    "write_u64",
]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint16s = npt.NDArray[np.uint16]
Uint32s = npt.NDArray[np.uint32]
Uint64s = npt.NDArray[np.uint64]
Bytes8 = npt.NDArray[np.uint8]

NEW: Final = 0xFF000001  # field value: the label after the furthest one used so far in the zone
ID_TOP: Final = 0x94000000  # of every derived id; listed ids may be any
CONTINUED_TOP: Final = 0x98000000  # of the ids of RULE_CONT labels
ID_MASK: Final = 0x03FFFFFF
TAG: Final = 0x9E4B1D37  # top half of an address word whose low half is an id

# Rules: how a label's id follows. Values travel in the form and never change their meaning.
RULE_CONTENT: Final = 0  # the label's bytes, fields masked
RULE_FULL: Final = 1  # the label's bytes as they stand in the form, ids included
RULE_EXPLICIT: Final = 2  # listed in the label table
RULE_CONT: Final = 3  # goes on the object before it: its id plus the distance
RULE_NAME: Final = 4  # a function: the content of its name
RULE_NONE: Final = 5  # nothing refers to it by id
RULE_END: Final = 6  # the empty label that ends a region
RULE_START: Final = 7  # the first label of a region that is one table
RULE_COUNT: Final = 8

# Derived patterns: the bytes are recomputed, the form holds zeros.
DERIVED_NONE: Final = 0
DERIVED_FINDFUNCTAB: Final = 1
DERIVED_FIPS_SUM: Final = 2

BATCH: Final = 1 << 15  # labels that one step looks at
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_MIX1: Final = np.uint64(0xFF51AFD7ED558CCD)  # MurmurHash3 fmix64 constants
_MIX2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_MASK64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Region:
    """A run of addresses that labels partition; `offset` is its file position, -1 for .bss."""

    addr: int
    offset: int
    size: int
    has_words: bool  # 8-byte aligned words may hold addresses
    is_text: bool
    space: int = 0  # equal contents in two spaces have two ids: a name is no string


@dataclass(frozen=True, slots=True)
class Kind:
    """How a 4-byte field names its target: value = (target - base) >> shift."""

    base_region: int
    base_delta: int  # added to the region's address
    shift: int
    counter: int  # fields of the same counter share one NEW count; -1: NEW is not used
    zone: int  # region whose labels a NEW counts through
    zone_pattern: int  # only labels of this pattern count; -1: all
    is_name: bool  # the k-th such field names the k-th RULE_NAME label


@dataclass(frozen=True, slots=True)
class Pattern:
    """Fields of a label: `fixed` (offset, kind), then from `start` on every `stride` bytes
    `repeated` (offset, kind) for as long as a whole field fits."""

    fixed: tuple[tuple[int, int], ...] = ()
    start: int = 0
    stride: int = 0
    repeated: tuple[tuple[int, int], ...] = ()
    derived: int = DERIVED_NONE
    key: tuple[int, int] = (0, 0)  # offset and size of the bytes that make the id; size 0: all


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of `width` bytes at `offset` in a region (-1: in the file) that is
    ((boundary `high` - boundary `low`) >> `shift`) + `add`; see `measures`."""

    region: int
    offset: int
    width: int
    high: int
    low: int
    shift: int
    add: int


@dataclass(slots=True)
class Labels:
    """The label table: parallel arrays in address order, and the region each label lies in."""

    regions: tuple[Region, ...]
    kinds: tuple[Kind, ...]
    patterns: tuple[Pattern, ...]
    region_of: Int32s
    start: Int64s  # address
    size: Int64s
    pattern: Int32s
    rule: Bytes8
    explicit: Uint32s  # ids of the RULE_EXPLICIT labels, in order
    salt: int = 0
    machine: int = 0  # whose candidate rule finds the sites in code (formats.sites)
    measures: tuple[Measure, ...] = ()

    @property
    def count(self) -> int:
        return len(self.start)

    def offsets(self) -> Int64s:
        """File position of each label; -1 where it has none (.bss)."""
        offset = np.array([r.offset for r in self.regions], np.int64)
        addr = np.array([r.addr for r in self.regions], np.int64)
        out: Int64s = (offset - addr)[self.region_of]
        out += self.start
        out[(offset < 0)[self.region_of]] = -1
        return out


@dataclass(frozen=True, slots=True)
class Fields:
    """All pattern fields of a file: label by label, in each the fixed ones as listed, then the
    repeated ones. Counters go through them in this order."""

    pos: Int32s  # file position
    kind: Uint16s


def expand_fields(labels: Labels) -> Fields:
    """Where the patterns put fields. Raises FormatError, before it allocates, when there are more
    than the file has room for."""
    offsets = labels.offsets()
    left = max((r.offset + r.size for r in labels.regions if r.offset >= 0), default=0)
    done = _expand_by_kernel(labels, offsets, left)
    return _expand_by_pattern(labels, offsets, left) if done is None else done


def _expand_by_kernel(labels: Labels, offsets: Int64s, left: int) -> Fields | None:
    rows: list[tuple[int, int, int, int, int, int]] = []
    flat: list[tuple[int, int]] = []
    for pattern in labels.patterns:
        low, middle = len(flat), len(flat) + len(pattern.fixed)
        flat += [*pattern.fixed, *pattern.repeated]
        rows.append((pattern.start, pattern.stride, low, middle, middle, len(flat)))
    offset, kind = np.array(flat, np.int64).reshape(-1, 2).T
    done = kernel.expand_fields(
        offsets, labels.size, labels.pattern, np.array(rows, np.int64).reshape(-1, 6),
        np.ascontiguousarray(offset), kind.astype(np.uint16), left,
    )  # fmt: skip
    if isinstance(done, int):
        _check_room(-1)
        return None
    return None if done is None else Fields(*done)


def _expand_by_pattern(labels: Labels, offsets: Int64s, left: int) -> Fields:
    """Vectorised over all labels that share a pattern."""
    by_pattern = np.argsort(labels.pattern, kind="stable")
    bounds = np.searchsorted(labels.pattern[by_pattern], np.arange(len(labels.patterns) + 1))
    none = np.zeros(0, np.int64)
    pos_parts: list[Int64s] = [none]
    kind_parts: list[Int64s] = [none]
    home_parts: list[Int64s] = [none]  # file position of the field's label
    turn_parts: list[Int64s] = [none]  # the field's turn in its label
    for index, pattern in enumerate(labels.patterns):
        chosen = by_pattern[bounds[index] : bounds[index + 1]]
        if not len(chosen) or not (pattern.fixed or pattern.repeated):
            continue
        chosen = chosen[offsets[chosen] >= 0]
        at, size = offsets[chosen], labels.size[chosen]
        left -= len(chosen) * len(pattern.fixed)
        _check_room(left)
        if pattern.fixed:
            offset, kind = np.array(pattern.fixed, np.int64).T
            fits = offset + 4 <= size[:, None]
            pos_parts.append((at[:, None] + offset)[fits])
            kind_parts.append(np.broadcast_to(kind, fits.shape)[fits])
            home_parts.append(np.broadcast_to(at[:, None], fits.shape)[fits])
            turn_parts.append(np.broadcast_to(np.arange(len(offset)), fits.shape)[fits])
        for place, (one, one_kind) in enumerate(pattern.repeated):
            room = size - pattern.start - one - 4
            count = (
                np.where(room < 0, 0, room // pattern.stride + 1) if pattern.stride else room * 0
            )
            total = int(count.sum())
            left -= total
            _check_room(left)
            step = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
            pos_parts.append(np.repeat(at + pattern.start + one, count) + step * pattern.stride)
            kind_parts.append(np.full(total, one_kind, np.int64))
            home_parts.append(np.repeat(at, count))
            turn_parts.append(len(pattern.fixed) + step * len(pattern.repeated) + place)
    pos, kinds = np.concatenate(pos_parts), np.concatenate(kind_parts)
    order = np.lexsort((np.concatenate(turn_parts), np.concatenate(home_parts)))
    return Fields(pos[order].astype(np.int32), kinds[order].astype(np.uint16))


def _check_room(left: int) -> None:
    if left < 0:
        raise FormatError("labels: more fields than the file has room for")


def read_fields(data: Bytes8, pos: Int32s) -> Uint32s:
    """The 4-byte fields at these positions."""
    done = kernel.read_fields(data, pos)
    return read_u32(data, pos.astype(np.int64)).astype(np.uint32) if done is None else done


def clear_fields(data: Bytes8, pos: Int32s) -> None:
    """Zero these 4-byte fields."""
    if not kernel.clear_fields(data, pos):
        clear(data, pos.astype(np.int64), 4)


def copy_numbers(source: Bytes8, out: Bytes8, pos: Int32s, target: Int32s) -> None:
    """Copy the fields that name no label (-1)."""
    if not kernel.copy_numbers(source, out, pos, target):
        number = pos[target < 0].astype(np.int64)
        for k in range(4):
            out[number + k] = source[number + k]


def find_tagged_words(labels: Labels, body: Bytes8) -> Int64s:
    """File positions of the 8-byte words of the form that hold TAG and an id."""
    found = []
    for region in labels.regions:
        if not region.has_words or region.offset < 0:
            continue
        first = region.offset + (-region.addr) % 8
        count = max(0, (region.offset + region.size - first) // 8)
        done = kernel.find_tagged(body, first, count, TAG)
        if done is not None:
            found.append(done)
            continue
        words = np.frombuffer(body[first : first + 8 * count].tobytes(), "<u8")
        found.append(first + 8 * np.flatnonzero(words >> np.uint64(32) == np.uint64(TAG)))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def mix(value: Uint64s, other: Uint64s) -> Uint64s:
    """MurmurHash3's 64-bit finalizer over value + a spread of `other`."""
    h = value + other * _SPREAD
    h ^= h >> np.uint64(33)
    h *= _MIX1
    h ^= h >> np.uint64(33)
    h *= _MIX2
    h ^= h >> np.uint64(33)
    return h


def fold_id(value: Uint64s, salt: int) -> Int64s:
    """An id: 26 bits of a hash under a constant top, so that it costs a delta little over three
    bytes and looks like no near displacement. Among 27,000 labels that is five clashes."""
    h = mix(value, np.full(len(value), salt, np.uint64))
    return (h & np.uint64(ID_MASK)).astype(np.int64) | ID_TOP


def fold_one(value: int, salt: int) -> int:
    """`fold_id` of one number, taken modulo 2^64, in 1 us."""
    h = (value + salt * int(_SPREAD)) & _MASK64
    h ^= h >> 33
    h = h * int(_MIX1) & _MASK64
    h ^= h >> 33
    h = h * int(_MIX2) & _MASK64
    h ^= h >> 33
    return h & ID_MASK | ID_TOP


def wrap_id(value: Int64s) -> Int64s:
    """The id of a continuation from id + distance, in a range of its own: it clashes with no
    object's."""
    return (value & ID_MASK) | CONTINUED_TOP


def find_heads(labels: Labels) -> Int32s:
    """The label that begins the object of each: itself, but for RULE_CONT."""
    own = np.arange(labels.count, dtype=np.int32)
    head: Int32s = np.maximum.accumulate(np.where(labels.rule == RULE_CONT, 0, own))
    return head


def object_sizes(labels: Labels, label: Int64s) -> Int64s:
    """Bytes of the objects that these labels begin: theirs, and of the RULE_CONT labels that go on
    each."""
    last = label.copy()
    cont = np.flatnonzero(labels.rule == RULE_CONT)
    if len(cont):
        run = np.flatnonzero(np.append(np.diff(cont) > 1, True))  # the last label of each run
        at = np.searchsorted(cont, label + 1)
        at[at == len(cont)] = 0
        goes_on = cont[at] == label + 1
        last[goes_on] = cont[run[np.searchsorted(run, at[goes_on])]]
    size: Int64s = labels.start[last] + labels.size[last] - labels.start[label]
    return size


def key_ranges(labels: Labels, label: Int64s) -> tuple[Int64s, Int64s]:
    """File position (-1: none) and size of the bytes that make the id of each of these labels: its
    pattern's key where the object is long enough, else all of the object."""
    offset = np.array([r.offset for r in labels.regions], np.int64)
    addr = np.array([r.addr for r in labels.regions], np.int64)
    region = labels.region_of[label]
    size = object_sizes(labels, label)
    start: Int64s = np.where(offset[region] < 0, -1, labels.start[label] + (offset - addr)[region])
    keys = np.array([p.key for p in labels.patterns], np.int64).reshape(-1, 2)
    pattern = labels.pattern[label]
    keyed = np.flatnonzero((keys[:, 1] > 0)[pattern])  # few patterns have one
    skip, length = keys[pattern[keyed]].T
    fits = skip + length <= size[keyed]
    start[keyed[fits]] += np.where(start[keyed[fits]] < 0, 0, skip[fits])
    size[keyed[fits]] = length[fits]
    return start, size


def content_ids(labels: Labels, label: Int64s, data: Bytes8) -> Int64s:
    """Ids of these labels by the content that each has in `data`, as a form's are."""
    ids = np.empty(len(label), np.int64)
    for low in range(0, len(label), BATCH):  # what each step needs is bounded
        some = label[low : low + BATCH]
        start, size = key_ranges(labels, some)
        hashes = np.zeros(len(some), np.uint64)
        backed = np.flatnonzero(start >= 0)
        hashes[backed] = hash_content(data, start[backed], size[backed])
        space = np.array([r.space for r in labels.regions], np.uint64)[labels.region_of[some]]
        hashes = np.where(space > 0, mix(hashes, space), hashes)
        ids[low : low + BATCH] = fold_id(hashes, labels.salt)
    return ids


def hash_content(data: Bytes8, start: Int64s, size: Int64s) -> Uint64s:
    """XXH3-64 of many runs, each without the zeros at its end: padding follows the neighbour, not
    the run. A run of nothing but zeros counts whole. 0.05 us a run, and 0.4 us without the kernel.
    Stable, not secret: a clash of ids is settled by the encoder."""
    done = kernel.hash_runs(data, start, size)
    if done is not None:
        return done
    raw = data.tobytes()
    found = [
        xxh3_64_intdigest(run.rstrip(b"\0") or run)
        for run in map(raw.__getitem__, map(slice, start.tolist(), (start + size).tolist()))
    ]
    return np.array(found, np.uint64)


def hash_bytes(data: bytes) -> int:
    """`hash_content` of one run, in 0.3 us."""
    return xxh3_64_intdigest(data.rstrip(b"\0") or data)


def continue_ids(labels: Labels, ids: Int64s) -> None:
    """Fill the ids of RULE_CONT labels from the object that they go on."""
    cont, head = labels.rule == RULE_CONT, find_heads(labels)
    ids[cont] = wrap_id(ids[head[cont]] + labels.start[cont] - labels.start[head[cont]])


def derive_ids(labels: Labels, masked: Bytes8, full: Bytes8) -> Int64s:
    """Ids of all labels but RULE_NAME, RULE_NONE (0) and their continuations."""
    ids = np.zeros(labels.count, np.int64)
    for rule, data in ((RULE_CONTENT, masked), (RULE_FULL, full)):
        chosen = np.flatnonzero(labels.rule == rule)
        ids[chosen] = content_ids(labels, chosen, data)
    ids[labels.rule == RULE_EXPLICIT] = labels.explicit.astype(np.int64)
    for rule, place in ((RULE_END, 1 << 60), (RULE_START, 1 << 62)):
        chosen = labels.rule == rule
        ordinal = labels.region_of[chosen].astype(np.uint64)
        ids[chosen] = fold_id(ordinal + np.uint64(place), labels.salt)
    return ids


def name_ids(labels: Labels, name_ids_of: Int64s) -> Int64s:
    """Ids of functions from the ids of their names."""
    return fold_id(name_ids_of.astype(np.uint64) + np.uint64(1 << 61), labels.salt)


def resolve_new(is_new: npt.NDArray[np.bool_], target: Int64s) -> Int64s:
    """Ordinals of NEW fields. `target[i]` is the ordinal that field i names, -1 for NEW or none.
    NEW means one more than the furthest ordinal named so far (first: 0)."""
    news = np.cumsum(is_new)
    reach = np.where(target >= 0, target + 1 - news, 0)
    reach[is_new] = 0
    furthest = np.maximum.accumulate(np.concatenate(([0], reach)))[:-1]
    out = target.copy()
    before: Int64s = news - is_new
    out[is_new] = (before + furthest)[is_new]
    return out

"""The compiled kernel's functions over numpy arrays.

Each returns None (False where it writes) if there is no kernel or it will not do this input: an
index outside, fields that overlap, an order that it does not know. The caller then goes the plain
way next to the call, which is the reference; the results are the same, bit for bit.

Every array goes over with its length, and C checks each index against it (layerkit/native).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from layerkit import native

__all__ = [
    "Counters",
    "Table",
    "amd64_fields",
    "clear",
    "clear_fields",
    "copy_numbers",
    "count_nonzero",
    "distinct",
    "expand_fields",
    "find_candidates",
    "find_labels",
    "find_tagged",
    "find_targets",
    "find_words",
    "hash_runs",
    "is_in",
    "is_loaded",
    "leaving_sites",
    "make_table",
    "name_fields",
    "place_fields",
    "read_fields",
    "read_targets",
    "read_values",
    "read_varints",
    "read_words",
    "restore_sites",
    "rewrite_sites",
    "table_ends",
    "text_hits",
    "write_ids",
    "write_targets",
    "write_values",
    "write_varints",
    "write_words",
]

Array = npt.NDArray[np.generic]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]
Uint32s = npt.NDArray[np.uint32]
Uint16s = npt.NDArray[np.uint16]
Bytes8 = npt.NDArray[np.uint8]
SiteArrays = tuple[Int64s, Int64s, Bytes8, Bytes8]  # position, next position, kind, scale

_LIBRARY: Final = native.load()
REFUSE, PAST_ZONE, NO_ROOM = -1, -2, -4  # statuses of native/kernel.h and fields.c
BYTES_A_SITE: Final = 16  # code has one site in 20 to 30 bytes; a wrong guess costs a second pass


def is_loaded() -> bool:
    return _LIBRARY is not None


class _Lookup(ctypes.Structure):
    """Lookup of native/kernel.h."""

    _fields_ = (
        ("ids", ctypes.c_void_p),
        ("label", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("first", ctypes.c_void_p),
        ("bucket_count", ctypes.c_int64),
        ("shift", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Table:
    """Distinct ids ascending, the label of each, and where the ids of each bucket begin."""

    ids: Uint32s
    label: Int32s
    first: Uint32s
    shift: int

    def _struct(self) -> _Lookup:
        return _Lookup(
            _address(self.ids), _address(self.label), len(self.ids),
            _address(self.first), len(self.first) - 1, self.shift,
        )  # fmt: skip


def _address(array: Array) -> int:
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


def _call(name: str, *arguments: Array | int | Table | ctypes.c_int64) -> int:
    """The function's status. Numbers go as int64, arrays as pointers; lengths are the caller's."""
    if _LIBRARY is None:
        return REFUSE
    passed: list[object] = []
    for one in arguments:
        if isinstance(one, np.ndarray):
            passed.append(ctypes.c_void_p(_address(one)))
        elif isinstance(one, Table):
            passed.append(ctypes.byref(one._struct()))
        elif isinstance(one, ctypes.c_int64):
            passed.append(ctypes.byref(one))
        elif -(1 << 63) <= one < 1 << 63:
            passed.append(ctypes.c_int64(one))
        else:
            return REFUSE
    function = getattr(_LIBRARY, name)
    function.restype = ctypes.c_int64
    return int(function(*passed))


def _i64(values: Array) -> Int64s:
    return np.ascontiguousarray(values, np.int64)


def _i32(values: Array) -> Int32s:
    return np.ascontiguousarray(values, np.int32)


def _is_plain(data: Bytes8) -> bool:
    return data.dtype == np.uint8 and data.ndim == 1 and data.flags.c_contiguous


def _is_target(data: Bytes8) -> bool:
    return _is_plain(data) and data.flags.writeable


# --- hashes and fields


def hash_runs(data: Bytes8, start: Int64s, size: Int64s) -> Uint64s | None:
    """Twin of `model.hash_content`."""
    start, size = _i64(start), _i64(size)
    if _LIBRARY is None or not _is_plain(data) or len(start) != len(size):
        return None
    out = np.empty(len(start), np.uint64)
    done = _call("lk_hash_runs", data, len(data), start, size, len(start), out)
    return out if done == 0 else None


def expand_fields(
    offsets: Int64s, size: Int64s, pattern: Int32s, rows: Int64s, offset: Int64s, kind: Uint16s,
    room: int,
) -> tuple[Int32s, Uint16s] | int | None:  # fmt: skip
    """Twin of `model.expand_fields`; NO_ROOM when there are more fields than `room`. A row is a
    pattern's start, stride, and its two runs in `offset` and `kind`."""
    if _LIBRARY is None:
        return None
    labels = (_i64(offsets), _i64(size), _i32(pattern), len(offsets))
    shape = (rows, len(rows), offset)
    count = _call("lk_count_fields", *labels, *shape, len(offset), room)
    if count < 0:
        return NO_ROOM if count == NO_ROOM else None
    pos, kinds = np.empty(count, np.int32), np.empty(count, np.uint16)
    made = _call("lk_expand_fields", *labels, *shape, kind, len(offset), pos, kinds, count)
    return (pos, kinds) if made == count else None


def read_fields(data: Bytes8, pos: Int32s) -> Uint32s | None:
    """Twin of `model.read_fields`."""
    if _LIBRARY is None or not _is_plain(data):
        return None
    out = np.empty(len(pos), np.uint32)
    return out if _call("lk_read_fields", data, len(data), _i32(pos), len(pos), out) == 0 else None


def clear_fields(data: Bytes8, pos: Int32s) -> bool:
    """Twin of `model.clear_fields`."""
    if _LIBRARY is None or not _is_target(data):
        return False
    return _call("lk_clear_fields", data, len(data), _i32(pos), len(pos)) == 0


def copy_numbers(source: Bytes8, out: Bytes8, pos: Int32s, target: Int32s) -> bool:
    """Twin of `model.copy_numbers`."""
    if _LIBRARY is None or not _is_plain(source) or not _is_target(out):
        return False
    if len(source) != len(out) or len(pos) != len(target):
        return False
    arrays = (_i32(pos), _i32(target), len(pos))
    return _call("lk_copy_numbers", source, out, len(out), *arrays) == 0


def place_fields(
    out: Bytes8, pos: Int32s, kind: Uint16s, value: Uint32s, target: Int32s, *,
    start: Int64s, base: Int64s, shift: Int64s,
) -> bool:  # fmt: skip
    """Write into each field the place of the label that it names, by `base` and `shift` of its
    kind, or its value. When refused, some may be written: all of those the plain way writes."""
    if _LIBRARY is None or not _is_target(out) or not _are_fields(pos, kind, value, target):
        return False
    fields = (_i32(pos), kind, value, _i32(target), len(pos))
    rest = (_i64(start), len(start), _i64(base), _i64(shift), len(base))
    return _call("lk_place_fields", out, len(out), *fields, *rest) == 0


def write_ids(
    out: Bytes8, pos: Int32s, target: Int32s, ids: Int64s, ready: npt.NDArray[np.bool_]
) -> bool:
    """Put the id of its label into each field whose label is ready. When refused, some may be
    written: all of those the plain way writes."""
    if _LIBRARY is None or not _is_target(out) or len(pos) != len(target):
        return False
    labels = (_i64(ids), np.ascontiguousarray(ready, np.bool_), len(ids))
    if len(ids) != len(ready):
        return False
    return _call("lk_write_ids", out, len(out), _i32(pos), _i32(target), len(pos), *labels) == 0


def _are_fields(pos: Int32s, kind: Uint16s, value: Uint32s, target: Int32s) -> bool:
    known = kind.dtype == np.uint16 and value.dtype == np.uint32
    plain = kind.flags.c_contiguous and value.flags.c_contiguous
    return known and plain and len(pos) == len(kind) == len(value) == len(target)


def read_words(data: Bytes8, pos: Int64s, width: int) -> Int64s | None:
    """Little-endian numbers of 4 or 8 bytes."""
    if _LIBRARY is None or not _is_plain(data):
        return None
    out = np.empty(len(pos), np.int64)
    name = {4: "lk_read_u32", 8: "lk_read_u64"}[width]
    return out if _call(name, data, len(data), _i64(pos), len(pos), out) == 0 else None


def write_words(data: Bytes8, pos: Int64s, value: Int64s, width: int) -> bool:
    if _LIBRARY is None or not _is_target(data) or len(pos) != len(value):
        return False
    return _call("lk_write", data, len(data), _i64(pos), len(pos), _i64(value), width) == 0


def clear(data: Bytes8, pos: Int64s, width: int) -> bool:
    """Zero `width` bytes at each position."""
    if _LIBRARY is None or not _is_target(data):
        return False
    return _call("lk_clear", data, len(data), _i64(pos), len(pos), width) == 0


def find_tagged(data: Bytes8, first: int, count: int, tag: int) -> Int64s | None:
    """Positions of those of `count` 8-byte words from `first` on whose high half is `tag`."""
    if _LIBRARY is None or not _is_plain(data):
        return None
    out = np.empty(0, np.int64)
    for _ in range(2):
        found = _call("lk_find_tagged", data, len(data), first, count, tag, out, len(out))
        if found == len(out):
            return out
        if found < 0:
            break
        out = np.empty(found, np.int64)
    return None


def count_nonzero(data: Bytes8, start: Int64s, size: Int64s) -> Int64s | None:
    """Twin of `packed.count_nonzero`."""
    if _LIBRARY is None or not _is_plain(data) or len(start) != len(size):
        return None
    out = np.empty(len(start), np.int64)
    done = _call("lk_count_nonzero", data, len(data), _i64(start), _i64(size), len(start), out)
    return out if done == 0 else None


def read_varints(data: Bytes8, count: int) -> Int64s | None:
    """Twin of `packed.read_varints`; None too where that raises."""
    if _LIBRARY is None or not _is_plain(data) or count > len(data):
        return None
    out = np.empty(count, np.int64)
    return out if _call("lk_read_varints", data, len(data), count, out) == 0 else None


def write_varints(value: Int64s) -> Bytes8 | None:
    """Twin of `packed.write_varints`."""
    if _LIBRARY is None:
        return None
    value = _i64(value)
    widest = max(1, -(-int(value.max(initial=0)).bit_length() // 7))
    out = np.empty(len(value) * widest, np.uint8)
    size = _call("lk_write_varints", value, len(value), out, len(out))
    return out[:size] if size >= 0 else None


def table_ends(data: Bytes8, start: Int64s) -> Int64s | None:
    """Twin of `discover.table_ends`."""
    if _LIBRARY is None or not _is_plain(data):
        return None
    end = np.empty(len(start), np.int64)
    return (
        end if _call("lk_table_ends", data, len(data), _i64(start), len(start), end) == 0 else None
    )


# --- ids


def make_table(ids: Int64s) -> Table | None:
    """Twin of `decoder.make_lookup`."""
    if _LIBRARY is None:
        return None
    ids = _i64(ids)
    work = np.empty(2 * len(ids), np.uint64)
    sorted_, label = np.empty(len(ids), np.uint32), np.empty(len(ids), np.int32)
    count = _call("lk_sort_ids", ids, len(ids), work, sorted_, label)
    if count < 0:
        return None
    del work
    sorted_, label = sorted_[:count].copy(), label[:count].copy()
    largest = int(sorted_[-1]) if count else 0
    shift = max(0, largest.bit_length() - count.bit_length())  # about one id a bucket
    first = np.empty((largest >> shift) + 2, np.uint32)
    done = _call("lk_index_ids", sorted_, count, shift, first, len(first) - 1)
    return Table(sorted_, label, first, shift) if done == 0 else None


def find_labels(table: Table, value: Int64s) -> Int64s | None:
    """Twin of `decoder.Lookup.find`."""
    label = np.empty(len(value), np.int64)
    done = _call("lk_find_labels", table, _i64(value), len(value), label)
    return label if done == 0 else None


@dataclass(frozen=True, slots=True)
class Counters:
    """The NEW counters of a form: region and pattern (-1: all) of each one's zone, and which
    counter each kind shares (-1: none)."""

    region_of: Int32s  # of the labels
    pattern_of: Int32s
    zones: Int64s  # n x 2
    counter_of: Int64s

    def _arguments(self) -> tuple[Array | int, ...]:
        """As the C functions begin, room for work included."""
        count = len(self.region_of)
        return (
            _i32(self.region_of), _i32(self.pattern_of), count,
            np.empty(count, np.int32), np.empty(count, np.int32),
            _i64(self.zones), len(self.zones), _i64(self.counter_of), len(self.counter_of),
        )  # fmt: skip


def name_fields(
    counters: Counters, kind: Uint16s, value: Uint32s, table: Table, new_value: int
) -> Int32s | int | None:
    """Twin of `decoder.field_labels`; PAST_ZONE where a NEW field names nothing."""
    target = np.empty(len(kind), np.int32)
    if _LIBRARY is None or not _are_fields(target, kind, value, target):
        return None
    arguments = (*counters._arguments(), kind, value, len(kind), new_value, table, target)
    done = _call("lk_name_fields", *arguments)
    return target if done == 0 else PAST_ZONE if done == PAST_ZONE else None


def find_targets(
    counters: Counters, kind: Uint16s, value: Uint32s, table: Table, origin: int, *,
    base: Int64s, shift: Int64s, zoned: npt.NDArray[np.bool_],
) -> tuple[Int32s, npt.NDArray[np.bool_]] | None:  # fmt: skip
    """Twin of `rewriting.find_targets`."""
    target, is_new = np.empty(len(kind), np.int32), np.empty(len(kind), np.bool_)
    if _LIBRARY is None or not _are_fields(target, kind, value, target):
        return None
    arguments = (*counters._arguments(), kind, value, len(kind), _i64(base), _i64(shift), zoned)
    done = _call("lk_find_targets", *arguments, table, origin, target, is_new)
    return (target, is_new) if done == 0 else None


def find_words(
    data: Bytes8, first: int, count: int, table: Table, origin: int
) -> tuple[Int64s, Int32s] | None:
    """Positions of those of `count` 8-byte words from `first` on that hold the address of a label
    (its id in `table` and `origin`), and the labels."""
    if _LIBRARY is None or not _is_plain(data):
        return None
    pos, label = np.empty(0, np.int64), np.empty(0, np.int32)
    for _ in range(2):
        arguments = (data, len(data), first, count, table, origin)
        found = _call("lk_find_words", *arguments, pos, label, len(pos))
        if found == len(pos):
            return pos, label
        if found < 0:
            break
        pos, label = np.empty(found, np.int64), np.empty(found, np.int32)
    return None


# --- sets


def distinct(values: Array) -> Int64s | None:
    """Twin of `sets.distinct`."""
    if _LIBRARY is None or values.dtype == np.uint64:
        return None
    own = values.astype(np.int64)  # a copy, which is sorted in place
    count = _call("lk_distinct", own, len(own), np.empty(len(own), np.int64))
    return own[:count].copy() if count < len(own) else own


def is_in(values: Array, among: Array) -> npt.NDArray[np.bool_] | None:
    """Twin of `sets.is_in`."""
    if _LIBRARY is None or values.dtype == np.uint64 or not len(among):
        return None
    members = distinct(among)
    if members is None:
        return None
    spread = int(members[-1]) - int(members[0])
    shift = max(0, spread.bit_length() - len(members).bit_length() - 1)
    buckets = (spread >> shift) + 1
    out = np.empty(len(values), np.bool_)
    done = _call(
        "lk_is_in", _i64(values), len(values), members, len(members), shift,
        np.empty(buckets + 1, np.uint32), buckets, out,
    )  # fmt: skip
    return out if done == 0 else None


# --- sites in code


def amd64_fields(text: Bytes8, start: int, into: Int64s) -> tuple[int, int]:
    """Write the fields of true instructions from `start` on into `into`; how many, and where the
    sweep stopped: at one that the kernel does not know, near the end, or when `into` was full."""
    count = ctypes.c_int64(0)
    stop = _call("lk_amd64_fields", text, len(text), start, into, len(into), count)
    return (count.value, stop) if stop >= start else (0, start)


def _empty_sites(count: int) -> SiteArrays:
    return (
        np.empty(count, np.int64), np.empty(count, np.int64),
        np.empty(count, np.uint8), np.empty(count, np.uint8),
    )  # fmt: skip


def find_candidates(text: Bytes8, machine: int) -> SiteArrays | None:
    """Twin of `sites.find_candidates`."""
    if _LIBRARY is None or not _is_plain(text):
        return None
    count = _call("lk_find_candidates", text, len(text), machine, *_empty_sites(0), 0)
    out = _empty_sites(max(0, count))
    found = _call("lk_find_candidates", text, len(text), machine, *out, count)
    return out if found == count >= 0 else None


def text_hits(
    body: Bytes8, offset: int, size: int, machine: int, far: Table, near: Table, skip: Int64s
) -> tuple[SiteArrays, Int64s] | None:
    """Sites of the form's code, and the label that each names; twin of `decoder.text_hits`."""
    if _LIBRARY is None or not _is_plain(body):
        return None
    skip, capacity = _i64(skip), size // BYTES_A_SITE + 64
    for _ in range(2):
        sites, label = _empty_sites(capacity), np.empty(capacity, np.int64)
        found = _call(
            "lk_text_hits", body, len(body), offset, size, machine, far, near, skip, len(skip),
            *sites, label, capacity,
        )  # fmt: skip
        if 0 <= found <= capacity:
            pos, next_pos, kind, scale = (a[:found].copy() for a in sites)
            return (pos, next_pos, kind, scale), label[:found].copy()  # type: ignore[return-value]
        if found < 0:
            break
        capacity = found
    return None


def restore_sites(
    body: Bytes8, out: Bytes8, offset: int, size: int, machine: int, *,
    far: Table, near: Table, skip: Int64s, addr: int, label_addr: Int64s,
) -> bool:  # fmt: skip
    """Find the sites of the form's code at `offset` and put the distances to their labels into
    `out`. When refused, some may be written: all of those are among what the plain way writes."""
    if _LIBRARY is None or not _is_plain(body) or not _is_target(out) or len(body) != len(out):
        return False
    return (
        _call(
            "lk_restore_sites", body, out, len(out), offset, size, machine, far, near,
            _i64(skip), len(skip), addr, _i64(label_addr), len(label_addr),
        ) == 0
    )  # fmt: skip


def leaving_sites(
    data: Bytes8, offset: int, size: int, machine: int, *,
    starts: Table, origin: int, addr: int, label_addr: Int64s, head: Int32s,
) -> Int64s | None:  # fmt: skip
    """File positions of the sites of a binary's code that leave their function; twin of
    `rewriting.leaving_sites`."""
    if _LIBRARY is None or not _is_plain(data) or len(head) != len(label_addr):
        return None
    capacity = size // BYTES_A_SITE + 64
    for _ in range(2):
        pos = np.empty(capacity, np.int64)
        found = _call(
            "lk_leaving_sites", data, len(data), offset, size, machine, starts, origin, addr,
            _i64(label_addr), _i32(head), len(head), pos, capacity,
        )  # fmt: skip
        if 0 <= found <= capacity:
            return pos[:found].copy()
        if found < 0:
            break
        capacity = found
    return None


def rewrite_sites(
    data: Bytes8, body: Bytes8, offset: int, size: int, machine: int, *,
    starts: Table, origin: int, addr: int, label_addr: Int64s, head: Int32s, ids: Int64s,
    turned: Int64s,
) -> bool:  # fmt: skip
    """Put ids into the sites that leave their function, or at `turned` places do not. When
    refused, some may be written: all of those are among what the plain way writes."""
    if _LIBRARY is None or not _is_plain(data) or not _is_target(body) or len(data) != len(body):
        return False
    if not len(head) == len(label_addr) == len(ids):
        return False
    return (
        _call(
            "lk_rewrite_sites", data, body, len(data), offset, size, machine, starts, origin,
            addr, _i64(label_addr), _i32(head), len(head), _i64(ids), _i64(turned), len(turned),
        ) == 0
    )  # fmt: skip


def _are_sites(pos: Int64s, *others: Array) -> bool:
    return all(len(one) == len(pos) and one.flags.c_contiguous for one in (pos, *others))


def read_values(data: Bytes8, offset: int, sites: SiteArrays) -> Int64s | None:
    pos, _, kind, _ = sites
    if _LIBRARY is None or not _is_plain(data) or not _are_sites(*sites):
        return None
    out = np.empty(len(pos), np.int64)
    done = _call("lk_read_values", data, len(data), offset, pos, kind, len(pos), out)
    return out if done == 0 else None


def read_targets(data: Bytes8, offset: int, sites: SiteArrays, addr: int) -> Int64s | None:
    if _LIBRARY is None or not _is_plain(data) or not _are_sites(*sites):
        return None
    out = np.empty(len(sites[0]), np.int64)
    done = _call("lk_read_targets", data, len(data), offset, *sites, len(out), addr, out)
    return out if done == 0 else None


def write_values(data: Bytes8, offset: int, sites: SiteArrays, value: Int64s) -> bool:
    pos, _, kind, _ = sites
    value = _i64(value)
    if _LIBRARY is None or not _is_target(data) or not _are_sites(*sites, value):
        return False
    return _call("lk_write_values", data, len(data), offset, pos, kind, len(pos), value) == 0


def write_targets(data: Bytes8, offset: int, sites: SiteArrays, addr: int, target: Int64s) -> bool:
    target = _i64(target)
    if _LIBRARY is None or not _is_target(data) or not _are_sites(*sites, target):
        return False
    return (
        _call("lk_write_targets", data, len(data), offset, *sites, len(target), addr, target) == 0
    )

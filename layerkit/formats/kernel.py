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
    "Table",
    "amd64_fields",
    "clear",
    "count_nonzero",
    "distinct",
    "expand_fields",
    "find_candidates",
    "find_labels",
    "find_tagged",
    "hash_runs",
    "is_in",
    "is_loaded",
    "make_table",
    "read_targets",
    "read_values",
    "read_varints",
    "read_words",
    "resolve_new",
    "restore_sites",
    "table_ends",
    "text_hits",
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
    offsets: Int64s, size: Int64s, pattern: Int64s, rows: Int64s, offset: Int64s, kind: Uint16s,
    room: int,
) -> tuple[Int64s, Uint16s] | int | None:  # fmt: skip
    """Twin of `model.expand_fields`; NO_ROOM when there are more fields than `room`. A row is a
    pattern's start, stride, and its two runs in `offset` and `kind`."""
    if _LIBRARY is None:
        return None
    labels = (_i64(offsets), _i64(size), _i64(pattern), len(offsets))
    shape = (rows, len(rows), offset)
    count = _call("lk_count_fields", *labels, *shape, len(offset), room)
    if count < 0:
        return NO_ROOM if count == NO_ROOM else None
    pos, kinds = np.empty(count, np.int64), np.empty(count, np.uint16)
    made = _call("lk_expand_fields", *labels, *shape, kind, len(offset), pos, kinds, count)
    return (pos, kinds) if made == count else None


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


def resolve_new(
    region_of: Int64s, pattern_of: Int64s, zone: int, zone_pattern: int, *,
    kind: Uint16s, value: Int64s, target: Int64s, member: Bytes8, new_value: int,
) -> int | None:  # fmt: skip
    """Write into `target` what the NEW fields of one counter name (see `decoder.field_labels`);
    PAST_ZONE where one names nothing. `member` says of each kind whether it counts."""
    if _LIBRARY is None or kind.dtype != np.uint16 or not target.flags.c_contiguous:
        return None
    count, labels = len(kind), len(region_of)
    if len(value) != count or len(target) != count:
        return None
    done = _call(
        "lk_resolve_new", _i64(region_of), _i64(pattern_of), labels, zone, zone_pattern,
        np.ascontiguousarray(kind), _i64(value), target, count, member, len(member), new_value,
        np.empty(labels, np.int32), np.empty(labels, np.int32),
    )  # fmt: skip
    return None if done == REFUSE else done


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

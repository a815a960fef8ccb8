"""Go's type descriptors in a binary: which objects they are, and where they hold offsets.

Walks from every address that something points to and that looks like a descriptor, closing over
what descriptors name. A wrong guess costs a few bytes of delta, never correctness: the form is
checked by decoding.

Source: src/internal/abi/type.go, go1.20 to go1.27.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from layerkit.formats.elf import Section
from layerkit.formats.golang import GoTables

__all__ = ["INTERFACE", "NAME", "TEXT", "TYPE", "TypeObject", "walk_types"]

# What a 4-byte field of a descriptor is an offset to
NAME, TYPE, TEXT = 0, 1, 2

_TYPE: Final = struct.Struct("<QQIBBBBQQii")  # Size_ PtrBytes Hash TFlag Align FieldAlign Kind
assert _TYPE.size == 48  # Equal GCData Str PtrToThis
_UNCOMMON: Final = struct.Struct("<iHHI")  # PkgPath Mcount Xcount Moff
_I32: Final = struct.Struct("<i")
_SLICE: Final = struct.Struct("<QQ")
TFLAG_UNCOMMON: Final = 1
TFLAG_GC_ON_DEMAND: Final = 1 << 4
MASK_SPAN: Final = 1 << 13  # bytes of pointers that a mask in the file covers at most
(ARRAY, CHAN, FUNC, INTERFACE, MAP, POINTER, SLICE, STRUCT) = (17, 18, 19, 20, 21, 22, 23, 25)
_SIZES: Final = {ARRAY: 72, CHAN: 64, FUNC: 56, INTERFACE: 80, POINTER: 56, SLICE: 56, STRUCT: 80}
_METHOD_LIMIT: Final = 1 << 14
NO_ROWS: Final = (0, 0)  # where rows begin, and how many there are


@dataclass(frozen=True, slots=True)
class TypeObject:
    """A descriptor: its address, its true size, and its (offset, NAME|TYPE|TEXT) fields."""

    addr: int
    size: int
    fields: tuple[tuple[int, int], ...]
    mask: int  # address of the GC mask, 0: none
    mask_size: int  # bytes
    names: tuple[
        tuple[int, int, bool], ...
    ]  # address, true size, ends with a package path's offset
    kind: int
    hash: int  # of the type's full name: the same in every build
    methods: int  # of an interface; 0 for other kinds


def walk_types(go: GoTables, home: Section, seeds: Iterable[int]) -> list[TypeObject]:
    """Descriptors in section `home` reachable from the seed addresses."""
    return _Walk(go, home).run(seeds)


class _Walk:
    """One walk: the section's bytes and the addresses still to look at."""

    def __init__(self, go: GoTables, home: Section) -> None:
        self._data = go.elf.bytes_of(home)
        self._addr = home.addr
        self._end = home.end_addr
        self._types = go.types
        self._map_size = 112 if go.minor >= 24 else 88  # swiss maps came with go1.24
        loaded = [s for s in go.elf.sections if s.addr]
        self._low = min(s.addr for s in loaded)
        self._high = max(s.end_addr for s in loaded)
        self._names: dict[int, tuple[int, int, bool] | None] = {}
        self._shapes: dict[
            tuple[int, tuple[int, int], tuple[int, int]], tuple[tuple[int, int], ...]
        ] = {}

    def run(self, seeds: Iterable[int]) -> list[TypeObject]:
        work = [a for a in self._likely(seeds) if self._looks_right(a)]
        seen = set(work)
        found = []
        while work:
            addr = work.pop()
            made, named = self._read(addr)
            found.append(made)
            for other in named:
                if other not in seen and self._looks_right(other):
                    seen.add(other)
                    work.append(other)
        found.sort(key=lambda t: t.addr)
        return found

    def _likely(self, seeds: Iterable[int]) -> list[int]:
        """Those that two bytes do not rule out: a tenth, found at once."""
        addrs = np.fromiter(seeds, np.int64)
        at = addrs[addrs % 8 == 0] - self._addr
        at = at[(at >= 0) & (at + 80 <= len(self._data))]
        raw = np.frombuffer(self._data, np.uint8)
        kind, align = raw[at + 23] & 31, raw[at + 21]
        fine = (kind > 0) & (kind <= 26) & (align > 0) & (align <= 8)
        likely: list[int] = (at[fine] + self._addr).tolist()
        return likely

    def _looks_right(self, addr: int) -> bool:
        at = addr - self._addr
        if at < 0 or at + 80 > len(self._data) or addr % 8:
            return False
        size, ptr, _, tflag, align, falign, kind, equal, gc, name, to_this = _TYPE.unpack_from(
            self._data, at
        )
        span = self._high - self._types
        return (
            ptr <= size < 1 << 40
            and 1 <= kind & 31 <= 26
            and align in (1, 2, 4, 8)
            and falign in (1, 2, 4, 8)
            and tflag < 64
            and (equal == 0 or self._low <= equal < self._high)
            and (gc == 0 or self._low <= gc < self._high)
            and 0 < name < span
            and 0 <= to_this < span
        )

    def _i32(self, at: int) -> int:
        return int(_I32.unpack_from(self._data, at)[0]) if at + 4 <= len(self._data) else 0

    def _read(self, addr: int) -> tuple[TypeObject, list[int]]:
        at = addr - self._addr
        row = _TYPE.unpack_from(self._data, at)
        kind, tflag = row[6] & 31, row[3]
        extra = self._map_size if kind == MAP else _SIZES.get(kind, 48)
        uncommon = bool(tflag & TFLAG_UNCOMMON)
        behind = extra + (16 if uncommon else 0)
        end, has_path, methods = self._methods(at, extra) if uncommon else (extra, False, NO_ROWS)
        members = NO_ROWS
        if kind == FUNC:
            inputs, outputs = struct.unpack_from("<HH", self._data, at + 48)
            end = max(end, behind + 8 * (inputs + (outputs & 0x7FFF)))
        elif kind in (INTERFACE, STRUCT):
            last, members = self._members(at, addr, kind, behind)
            end = max(end, last)
        places, types = [row[9]], [row[10]]
        if has_path:
            places.append(self._i32(at + extra))
        for (first, count), width in ((methods, 4), (members, 2)):
            if count:
                values = struct.unpack_from(f"<{width * count}i", self._data, at + first)
                places += values[0::width]
                types += values[1::width]
        names = []
        for place in places:
            if place not in self._names:  # a name has many users, and equal names are one
                self._names[place] = self._name(place)
            if found := self._names[place]:
                names.append(found)
        # GCData is a mask of PtrBytes/8 bits, unless built on demand (tflag 1<<4, go1.24)
        mask = row[8] if row[1] and not tflag & TFLAG_GC_ON_DEMAND and row[1] <= MASK_SPAN else 0
        made = TypeObject(
            addr, min(end, len(self._data) - at),
            self._fields(extra if has_path else 0, methods, members), mask,
            (row[1] // 8 + 7) // 8, tuple(names), kind, row[2],
            _SLICE.unpack_from(self._data, at + 56)[1] if kind == INTERFACE else 0,
        )  # fmt: skip
        return made, [self._types + offset for offset in types if offset]

    def _fields(
        self, path: int, methods: tuple[int, int], members: tuple[int, int]
    ) -> tuple[tuple[int, int], ...]:
        """The fields of one shape of descriptor; types of one shape share them."""
        shape = (path, methods, members)
        if shape not in self._shapes:
            fields = [(40, NAME), (44, TYPE)]
            if path:
                fields.append((path, NAME))
            for index in range(methods[1]):
                q = methods[0] + 16 * index
                fields += [(q, NAME), (q + 4, TYPE), (q + 8, TEXT), (q + 12, TEXT)]
            for index in range(members[1]):
                q = members[0] + 8 * index
                fields += [(q, NAME), (q + 4, TYPE)]
            self._shapes[shape] = tuple(fields)
        return self._shapes[shape]

    def _name(self, offset: int) -> tuple[int, int, bool] | None:
        """A name's address and size: flag byte, varint length, text, and the same for a tag."""
        at = self._types + offset - self._addr
        if not offset or not 0 <= at < len(self._data) - 8:
            return None
        flags, size = self._data[at], 1
        for part in (1, 2):  # 1: the name; 2: the tag, if flag bit 1 is set
            if part == 2 and not flags & 2:
                break
            length = shift = 0
            while True:
                byte = self._data[at + size] if at + size < len(self._data) else 0
                size += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80 or shift > 21:
                    break
            size += length
        if flags & 4:
            size += 4  # nameOff of the package path
        if at + size > len(self._data):
            return None
        return self._types + offset, size, bool(flags & 4)

    def _methods(self, at: int, extra: int) -> tuple[int, bool, tuple[int, int]]:
        """The end of the uncommon part at `extra` and its methods, whether it is one, and where
        the methods begin and how many there are."""
        if at + extra + 16 > len(self._data):
            return extra, False, NO_ROWS
        _, count, exported, first = _UNCOMMON.unpack_from(self._data, at + extra)
        end = extra + first + 16 * count
        if exported > count or count > _METHOD_LIMIT or at + end > len(self._data):
            return extra, False, NO_ROWS
        return end if count else extra + 16, True, (extra + first, count)

    def _members(self, at: int, addr: int, kind: int, end: int) -> tuple[int, tuple[int, int]]:
        """The end of interface methods or struct fields, when they lie right behind the
        descriptor, and where the methods begin and how many there are."""
        pointer, count = _SLICE.unpack_from(self._data, at + 56)
        width = 8 if kind == INTERFACE else 24
        first = pointer - addr
        if not count or count > _METHOD_LIMIT or not end <= first <= end + 16 * _METHOD_LIMIT:
            return end, NO_ROWS
        if at + first + width * count > len(self._data):
            return end, NO_ROWS
        rows = (int(first), int(count)) if kind == INTERFACE else NO_ROWS
        return int(first + width * count), rows

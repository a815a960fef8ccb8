"""Which role each byte of a Go binary, of its form, or of a layer's form has.

One principle: the innermost role (base before deps before code) whose presence alone explains a
byte owns it. **Exact**, by name: code, function names, functab, function records, named types, and,
in unstripped binaries, data symbols and the symbol table. **By rule**: what several functions use
(pc-value tables, function data, file names, type names, strings, other data) belongs to the
innermost that refers to it; but what itself points to code or types (itabs, func values, composite
types) to the outermost of those. Data between two known objects belongs to the one before it.
**Shared**: headers, label tables, module data, build info, notes, DWARF, and what nobody names.

Limits and sources: `formats.golang`, `formats.gotypes`, `formats.sites`. Measured: 0.5 s for a
6 MB binary, one byte a byte of memory beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from layerkit.errors import FormatError
from layerkit.formats import addressfree
from layerkit.formats.buildinfo import read_build_info
from layerkit.formats.cursor import Reader
from layerkit.formats.elf import MACHINE_ARM64, SHT_SYMTAB, SYM, Elf, Section, parse_elf
from layerkit.formats.golang import FUNC_SIZE, GoTables, parse_go_tables
from layerkit.formats.gonames import BASE, ROLES, SHARED, Owners
from layerkit.formats.gotypes import TypeObject, walk_types
from layerkit.formats.layerform import MAGIC, PART_BINARY, SIZE_LIMIT, is_layer_form
from layerkit.formats.ranges import Bytes8, Int64s, RoleRanges, join_ranges, one_role, ranges_of
from layerkit.formats.sites import AMD64, ARM64, disassemble, find_candidates, read_targets

__all__ = ["LayerRoles", "binary_roles", "form_roles", "layer_parts", "layer_roles"]

# Sections that hold no objects of the program's; those not painted otherwise stay shared
_NO_OBJECTS: Final = (
    ".go.buildinfo", ".go.fipsinfo", ".go.module", ".itablink", ".note.go.buildid",
    ".note.gnu.build-id", ".typelink",
)  # fmt: skip
UNKNOWN: Final = len(ROLES)  # of an object: no role yet; above all roles, so that `minimum` works
NO_FUNCDATA: Final = 0xFFFFFFFF
NO_FILE: Final = 0xFFFFFFFF
PAGE_SIZE: Final = 4096  # bytes of text that one findfunctab bucket covers (runtime/symtab.go)
BUCKET_SIZE: Final = 20
MODULEDATA_SIZE: Final = 41 * 8  # bytes up to gofunc; some 30 words more in any release
ROUNDS: Final = 64  # of propagation; real binaries settle within ten
TFLAG_UNCOMMON, TFLAG_NAMED = 1, 4  # internal/abi/type.go
_DAMAGE: Final = (ArithmeticError, LookupError, ValueError, TypeError, struct.error)


def binary_roles(binary: bytes) -> RoleRanges:
    """The roles of a Go binary's bytes; FormatError for any other file."""
    elf = parse_elf(binary)
    go = parse_go_tables(elf)
    try:
        return ranges_of(_Painter(elf, go).paint())
    except _DAMAGE as exc:
        raise FormatError("Go's tables do not hold together") from exc


def form_roles(form_size: int, binary: RoleRanges) -> RoleRanges:
    """The roles of a form's bytes: its body is laid out like the binary, at the form's end, and
    what is before it (header, label table) is shared."""
    return join_ranges([one_role(form_size - binary.size, SHARED), binary])


@dataclass(frozen=True, slots=True)
class LayerRoles:
    """The roles of a layer's form, and of its plain tar."""

    form: RoleRanges
    plain: RoleRanges


def layer_roles(form: bytes, role: int) -> LayerRoles:
    """Go binaries in a layer's form by what is in them; everything else has the layer's `role`.
    Decodes the binaries; raises FormatError for a malformed form."""
    if not is_layer_form(form):
        return LayerRoles(one_role(len(form), role), one_role(len(form), role))
    forms, plains, end = [], [], 0
    for kind, start, size in layer_parts(form):
        forms.append(one_role(start - end, SHARED if kind == PART_BINARY else role))
        end = start + size
        if kind != PART_BINARY:
            forms.append(one_role(size, role))
            plains.append(one_role(size, role))
            continue
        binary = addressfree.decode(form[start:end])
        try:
            ranges = binary_roles(binary)
        except FormatError:
            ranges = one_role(len(binary), role)
        forms.append(form_roles(size, ranges))
        plains.append(ranges)
    return LayerRoles(join_ranges(forms), join_ranges(plains))


def layer_parts(form: bytes) -> list[tuple[int, int, int]]:
    """Kind, offset and size of what each part of a layer form holds, in order."""
    reader = Reader(form, "layer form")
    reader.take(len(MAGIC) + 2)
    found = []
    while reader.left:
        kind = reader.u8()
        size = len(reader.sized(SIZE_LIMIT, "part"))
        found.append((kind, reader.offset - size, size))
    return found


def _u32(data: Bytes8, at: Int64s) -> Int64s:
    out = data[at].astype(np.int64)
    for k in (1, 2, 3):
        out |= data[at + k].astype(np.int64) << (8 * k)
    return out


@dataclass(slots=True)
class _Objects:
    """Data objects, cut at every place that anything refers to. `addrs` ascend."""

    addrs: Int64s
    fixed: Int64s  # role by name, or UNKNOWN
    inward: Int64s  # the innermost role that refers to it
    outward: Int64s  # the outermost role that it refers to; SHARED for none

    def at(self, addr: Int64s) -> Int64s:
        """Index of the object that holds each address."""
        return np.searchsorted(self.addrs, addr, side="right") - 1


class _Painter:
    """One binary: works out roles table by table, and paints one byte for each of the file's."""

    def __init__(self, elf: Elf, go: GoTables) -> None:
        self._elf, self._go = elf, go
        text = elf.section(".text")
        if text is None or not text.in_file or not text.addr <= go.text < text.end_addr:
            raise FormatError("no .text section that holds Go's text")
        self._text = text
        try:
            self._owners = Owners(read_build_info(elf))
        except FormatError:
            self._owners = Owners(None)
        self._file = np.frombuffer(elf.data, np.uint8)
        self._painted = np.zeros(len(elf.data), np.uint8)
        self._pcln = self._file[go.pclntab.offset : go.pclntab.offset + go.pclntab.size]
        self._pcdata = _u32(self._pcln, go.records + 28)
        self._funcdata = self._pcln[go.records + 43].astype(np.int64)
        self._name_starts, self._name_roles = self._names(go.name_off, go.cu_off)
        self._unit_starts = np.zeros(0, np.int64)
        self._unit_roles = np.zeros(0, np.int64)
        self._functions = self._function_roles()

    def paint(self) -> Bytes8:
        self._paint_text()
        self._paint_pclntab()
        self._paint_data()
        self._paint_findfunctab()
        self._paint_symbols()
        return self._painted

    def _put(self, starts: Int64s, roles: Int64s, end: int) -> None:
        """Paint from each start (ascending file positions) to the next, the last to `end`."""
        if not len(starts):
            return
        if starts[0] < 0 or end > len(self._painted):
            raise ValueError("a table lies outside the file")
        self._painted[starts[0] : end] = np.repeat(roles, np.diff(starts, append=end))

    # --- functions

    def _names(self, low: int, high: int) -> tuple[Int64s, Int64s]:
        """Offsets and roles of the zero-ended names in a part of .gopclntab."""
        names = self._pcln[low:high].tobytes().split(b"\0")
        sizes = np.array([len(name) + 1 for name in names], np.int64)
        role = self._owners.role_of_symbol
        roles = np.array([role(name.decode("latin-1")) for name in names], np.int64)
        return np.cumsum(sizes) - sizes, roles

    def _function_roles(self) -> Int64s:
        """By name; functions that name no package (assembly's own) by their compilation unit, whose
        role most of its functions have, else like the function before."""
        go = self._go
        index = np.searchsorted(self._name_starts, _u32(self._pcln, go.records + 4), side="right")
        roles = self._name_roles[index - 1]
        units = _u32(self._pcln, go.records + 32)
        self._unit_starts, unit_of = np.unique(units, return_inverse=True)
        counts = np.zeros((len(self._unit_starts), len(ROLES)), np.int64)
        np.add.at(counts, (unit_of, roles), 1)
        counts[:, SHARED] = 0
        most = counts.argmax(axis=1)  # SHARED for a unit without any named function
        self._unit_roles = most
        roles = np.where(roles == SHARED, most[unit_of], roles)
        known = np.flatnonzero(roles != SHARED)
        if len(known):
            before = np.searchsorted(known, np.arange(len(roles)), side="right") - 1
            roles = roles[known[np.maximum(before, 0)]]
        nameless = np.flatnonzero(self._name_roles == SHARED)
        used = np.searchsorted(nameless, index - 1)
        used = np.minimum(used, max(0, len(nameless) - 1))
        if len(nameless):
            hit = nameless[used] == index - 1
            self._name_roles[(index - 1)[hit]] = roles[hit]
        return roles

    def _paint_text(self) -> None:
        text = self._text
        starts = self._go.entries[:-1] - text.addr + text.offset
        self._put(starts, self._functions, text.offset + text.size)

    # --- .gopclntab

    def _paint_pclntab(self) -> None:
        go, base = self._go, self._go.pclntab.offset
        self._put(self._name_starts + go.name_off + base, self._name_roles, base + go.cu_off)
        units = np.append(self._unit_starts[self._unit_starts * 4 < go.file_off - go.cu_off], [])
        self._put(
            units.astype(np.int64) * 4 + go.cu_off + base,
            self._unit_roles[: len(units)],
            base + go.file_off,
        )
        self._paint_files()
        self._paint_pctab()
        functab = np.arange(go.func_count) * 8 + go.func_off + base
        first_record = int(go.records.min()) + base
        self._put(functab, self._functions, first_record)
        order = np.argsort(go.records[: go.func_count], kind="stable")
        sizes = FUNC_SIZE + 4 * (self._pcdata + self._funcdata)
        end = int((go.records[: go.func_count] + sizes).max()) + base
        self._put(go.records[order] + base, self._functions[order], end)

    def _paint_files(self) -> None:
        """A file name belongs to the innermost compilation unit that lists it."""
        go, base = self._go, self._go.pclntab.offset
        count = (go.file_off - go.cu_off) // 4
        entries = _u32(self._pcln, go.cu_off + 4 * np.arange(count))
        unit = np.searchsorted(self._unit_starts, np.arange(count), side="right") - 1
        keep = (entries != NO_FILE) & (entries < go.pctab_off - go.file_off) & (unit >= 0)
        starts, roles = _innermost(entries[keep], self._unit_roles[unit[keep]])
        self._put(starts + go.file_off + base, roles, base + go.pctab_off)

    def _paint_pctab(self) -> None:
        """A pc-value table belongs to the innermost function that uses it."""
        go, base = self._go, self._go.pclntab.offset
        offsets = [_u32(self._pcln, go.records + at) for at in (16, 20, 24)]
        users = [self._functions] * 3
        for index in range(int(self._pcdata.max(initial=0))):
            has = self._pcdata > index
            offsets.append(_u32(self._pcln, go.records[has] + FUNC_SIZE + 4 * index))
            users.append(self._functions[has])
        offset, user = np.concatenate(offsets), np.concatenate(users)
        keep = (offset > 0) & (offset < go.func_off - go.pctab_off)
        starts, roles = _innermost(offset[keep], user[keep])
        self._put(starts + go.pctab_off + base, roles, base + go.func_off)

    def _paint_findfunctab(self) -> None:
        """A bucket of the table that leads from a pc to a function belongs to the first function
        of its page."""
        go = self._go
        home = _holder(self._elf, go.findfunctab)
        if home is None:
            return
        count = -(-(int(go.entries[-1]) - int(go.entries[0])) // PAGE_SIZE)
        page = int(go.entries[0]) + PAGE_SIZE * np.arange(count)
        first = np.searchsorted(go.entries[:-1], page, side="right") - 1
        starts = go.findfunctab - home.addr + home.offset + BUCKET_SIZE * np.arange(count)
        inside = starts < home.offset + home.size
        end = min(int(starts[-1]) + BUCKET_SIZE, home.offset + home.size)
        self._put(starts[inside], self._functions[first[inside]], end)

    # --- data

    def _paint_data(self) -> None:
        go = self._go
        sections = [s for s in self._elf.sections if s.addr and s.in_file and s.size]
        homes = [
            s for s in sections if s not in (self._text, go.pclntab) and s.name not in _NO_OBJECTS
        ]
        code_target, code_role = self._code_references()
        word_addr, word_target = self._words(homes)
        data_target, data_role = self._funcdata_references()
        types = self._types(np.concatenate([code_target, word_target]))
        named = self._data_symbols(homes)
        cuts = [s.addr for s in homes] + [go.moduledata_addr]
        for made in types:
            cuts += [made.addr, made.addr + made.size]
            cuts += [at for addr, size, _ in made.names for at in (addr, addr + size)]
        cuts += [at for addr, size, _ in named for at in (addr, addr + size)]
        addrs = np.concatenate([np.array(cuts, np.int64), code_target, word_target, data_target])
        addrs = np.unique(addrs[(addrs >= min(s.addr for s in sections))])
        objects = _Objects(
            addrs,
            np.full(len(addrs), UNKNOWN, np.int64),
            np.full(len(addrs), UNKNOWN, np.int64),
            np.zeros(len(addrs), np.int64),
        )
        np.minimum.at(objects.inward, objects.at(code_target), code_role)
        np.minimum.at(objects.inward, objects.at(data_target), data_role)
        for addr, _, role in named:
            objects.fixed[objects.at(np.array([addr]))] = role
        module = (addrs >= go.moduledata_addr) & (addrs < go.moduledata_addr + MODULEDATA_SIZE)
        objects.fixed[module] = SHARED
        self._settle_types(types, objects, word_addr, word_target)
        edges = self._edges(types, objects, word_addr, word_target)
        roles = _settle(objects, *edges)
        self._paint_objects(homes, objects, roles)
        self._paint_links(objects, roles)

    def _code_references(self) -> tuple[Int64s, Int64s]:
        """Where code points outside its own function, and the role of the function."""
        go = self._go
        text = self._text
        data = self._elf.bytes_of(text)
        machine = ARM64 if self._elf.machine == MACHINE_ARM64 else AMD64
        found = find_candidates(data, machine)
        if machine == AMD64:
            found = found.select(np.isin(found.pos, disassemble(data, text.addr)))
        target = read_targets(np.frombuffer(data, np.uint8), 0, found, text.addr)
        function = np.searchsorted(go.entries[:-1], found.pos + text.addr, side="right") - 1
        outside = (target < text.addr) | (target >= text.end_addr)
        outside &= (target < go.pclntab.addr) | (target >= go.pclntab.end_addr)
        return target[outside], self._functions[function[outside]]

    def _words(self, homes: Sequence[Section]) -> tuple[Int64s, Int64s]:
        """Aligned words in data that hold an address of the module, and that address; not those of
        moduledata and of .itablink, which refer to everything."""
        go = self._go
        loaded = [s for s in self._elf.sections if s.addr]
        low, high = min(s.addr for s in loaded), max(s.end_addr for s in loaded)
        addrs, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for home in homes:
            first = home.offset + -home.addr % 8
            count = max(0, (home.offset + home.size - first) // 8)
            words = np.frombuffer(self._file[first : first + 8 * count].tobytes(), "<i8")
            hit = np.flatnonzero((words >= low) & (words < high))
            addrs.append(8 * hit + first - home.offset + home.addr)
            targets.append(words[hit])
        addr, target = np.concatenate(addrs), np.concatenate(targets)
        keep = (addr < go.moduledata_addr) | (addr >= go.moduledata_addr + MODULEDATA_SIZE)
        keep &= (target < go.pclntab.addr) | (target >= go.pclntab.end_addr)
        return addr[keep], target[keep]

    def _funcdata_references(self) -> tuple[Int64s, Int64s]:
        """Where function data lies, and the role of the function."""
        go = self._go
        targets, users = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        first = go.records + FUNC_SIZE + 4 * self._pcdata
        for index in range(int(self._funcdata.max(initial=0))):
            has = self._funcdata > index
            value = _u32(self._pcln, first[has] + 4 * index)
            known = value != NO_FUNCDATA
            targets.append(value[known] + go.gofunc)
            users.append(self._functions[has][known])
        return np.concatenate(targets), np.concatenate(users)

    def _data_symbols(self, homes: Sequence[Section]) -> list[tuple[int, int, int]]:
        """Address, size and role of named data; symbols that stand for many objects name none."""
        low, high = min(s.addr for s in homes), max(s.end_addr for s in homes)
        found = []
        for symbol in self._elf.symbols():
            name = symbol.name.decode("latin-1")
            if low <= symbol.addr < high and not name.endswith("*") and ":" not in name:
                role = self._owners.role_of_symbol(name)
                if role != SHARED and not name.startswith(("runtime.gcbits.", "runtime.types")):
                    found.append((symbol.addr, symbol.size, role))
        return found

    # --- types

    def _types(self, targets: Int64s) -> list[TypeObject]:
        home = _holder(self._elf, self._go.types)
        if home is None:
            return []
        seeds = [targets]
        link = self._elf.section(".typelink")
        if link is not None and link.size:
            offsets = np.frombuffer(self._elf.bytes_of(link)[: link.size // 4 * 4], "<i4")
            seeds.append(offsets.astype(np.int64) + self._go.types)
        every = np.unique(np.concatenate(seeds))
        every = every[(every >= home.addr) & (every < home.end_addr)]
        return walk_types(self._go, home, every.tolist())

    def _settle_types(
        self, types: list[TypeObject], objects: _Objects, word_addr: Int64s, word_target: Int64s
    ) -> None:
        """A named type by its package path; an unnamed one is made of others, and belongs to the
        outermost of them."""
        home = _holder(self._elf, self._go.types)
        if home is None or not types:
            return
        addrs = np.array([made.addr for made in types], np.int64)
        found = [self._type_by_name(made, home) for made in types]
        roles = np.array([role for role, _ in found], np.int64)
        fixed = np.array([has_name for _, has_name in found])
        source = np.searchsorted(addrs, word_addr, side="right") - 1
        ends = addrs + np.array([made.size for made in types], np.int64)
        part = np.searchsorted(addrs, word_target)
        part_ = np.minimum(part, len(addrs) - 1)
        inside = (source >= 0) & (word_addr < ends[source]) & (word_addr >= addrs[source] + 48)
        inside &= addrs[part_] == word_target
        source, part = source[inside], part_[inside]
        for _ in range(ROUNDS):
            made = roles.copy()
            np.maximum.at(made, source, roles[part])
            made = np.where(fixed, roles, made)
            if (made == roles).all():
                break
            roles = made
        objects.fixed[objects.at(addrs)] = roles

    def _type_by_name(self, made: TypeObject, home: Section) -> tuple[int, bool]:
        """A type's role by its package path, BASE without one; and whether it has a name."""
        at = home.offset + made.addr - home.addr
        flags, role = int(self._file[at + 20]), BASE
        if flags & TFLAG_UNCOMMON and len(made.fields) > 2:
            path = _i32(self._elf.data, at + made.fields[2][0])
            name = self._type_name(home, path) if path > 0 else ""
            role = self._owners.role_of_package(name) if name else BASE
        if not flags & TFLAG_NAMED:
            return role, False
        # an instance's own name lists its arguments: "Pointer[example.com/app.T]"
        own = self._type_name(home, _i32(self._elf.data, at + 40))
        arguments = self._owners.role_of_symbol("[" + own.partition("[")[2]) if "[" in own else BASE
        return max(role, arguments, BASE), True

    def _type_name(self, home: Section, offset: int) -> str:
        """The text of a name: flag byte, varint length, text (internal/abi/type.go Name)."""
        at = home.offset + self._go.types - home.addr + offset + 1
        size = shift = 0
        while True:
            byte = self._elf.data[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 21:
                break
        return self._elf.data[at : at + size].decode("utf-8", "replace")

    # --- who refers to what

    def _edges(
        self, types: list[TypeObject], objects: _Objects, word_addr: Int64s, word_target: Int64s
    ) -> tuple[Int64s, Int64s]:
        """From object to object; words that point to code give the outward role at once."""
        go = self._go
        entry = np.searchsorted(go.entries[:-1], word_target, side="right") - 1
        to_text = (word_target >= go.entries[0]) & (word_target < go.entries[-1])
        source = objects.at(word_addr)
        np.maximum.at(objects.outward, source[to_text], self._functions[entry[to_text]])
        target = objects.at(word_target[~to_text])
        names = [(made.addr, addr) for made in types for addr, _, _ in made.names]
        pairs = np.array(names, np.int64).reshape(-1, 2)
        sources = np.concatenate([source[~to_text], objects.at(pairs[:, 0])])
        targets = np.concatenate([target, objects.at(pairs[:, 1])])
        keep = (targets >= 0) & (sources >= 0)
        return sources[keep], targets[keep]

    # --- painting

    def _paint_objects(self, homes: Sequence[Section], objects: _Objects, roles: Int64s) -> None:
        """Sections from their objects; what nobody knows is like what lies before it."""
        go = self._go
        places = [(s.addr, s.offset, s.size) for s in homes]
        if go.pclntab.addr <= go.gofunc < go.pclntab.end_addr:  # go1.26: function data lies here
            at = go.gofunc - go.pclntab.addr
            places.append((go.gofunc, go.pclntab.offset + at, go.pclntab.size - at))
        for addr, offset, size in places:
            low, high = np.searchsorted(objects.addrs, [addr, addr + size]).tolist()
            mine = roles[low:high]
            known = np.flatnonzero(mine != UNKNOWN)
            if not len(known):
                continue
            before = np.searchsorted(known, np.arange(len(mine)), side="right") - 1
            filled = np.where(before < 0, SHARED, mine[known[np.maximum(before, 0)]])
            self._put(objects.addrs[low:high] - addr + offset, filled, offset + size)

    def _paint_links(self, objects: _Objects, roles: Int64s) -> None:
        """.typelink and .itablink: an entry is of the type or itab that it names."""
        for name, width, base in ((".typelink", 4, self._go.types), (".itablink", 8, 0)):
            section = self._elf.section(name)
            if section is None or not section.size:
                continue
            raw = self._elf.bytes_of(section)[: section.size // width * width]
            entries = np.frombuffer(raw, f"<i{width}").astype(np.int64) + base
            mine = roles[np.maximum(objects.at(entries), 0)]
            mine = np.where(mine == UNKNOWN, SHARED, mine)
            starts = section.offset + width * np.arange(len(entries))
            self._put(starts, mine, section.offset + section.size)

    def _paint_symbols(self) -> None:
        """.symtab and .strtab of an unstripped binary, by each symbol's name."""
        table = next((s for s in self._elf.sections if s.kind == SHT_SYMTAB), None)
        if table is None or table.link >= len(self._elf.sections):
            return
        names = self._elf.sections[table.link]
        parts = self._elf.bytes_of(names).split(b"\0")
        sizes = np.array([len(part) + 1 for part in parts], np.int64)
        role = self._owners.role_of_symbol
        roles = np.array([role(part.decode("latin-1")) for part in parts], np.int64)
        starts = np.cumsum(sizes) - sizes
        inside = starts < names.size
        self._put(starts[inside] + names.offset, roles[inside], names.offset + names.size)
        count = table.size // SYM.size
        at = table.offset + SYM.size * np.arange(count)
        index = np.searchsorted(starts, _u32(self._file, at), side="right") - 1
        self._put(at, roles[index], table.offset + table.size)


def _innermost(places: Int64s, roles: Int64s) -> tuple[Int64s, Int64s]:
    """Each place once, ascending, with the innermost of its roles."""
    order = np.lexsort((roles, places))
    starts, first = np.unique(places[order], return_index=True)
    return starts, roles[order][first]


def _settle(objects: _Objects, source: Int64s, target: Int64s) -> Int64s:
    """Roles of all objects, UNKNOWN where nothing says. A name decides; else the innermost object
    or function that refers to it, but never further in than what it refers to."""
    named = objects.fixed != UNKNOWN
    outward = objects.outward.copy()
    known = named[target] & (objects.fixed[target] != SHARED)
    np.maximum.at(outward, source[known], objects.fixed[target[known]])
    roles = objects.fixed.copy()
    for _ in range(ROUNDS):
        inward = objects.inward.copy()
        speaks = (roles[source] != SHARED) & (roles[source] != UNKNOWN) & (source != target)
        np.minimum.at(inward, target[speaks], roles[source[speaks]])
        found = np.where(inward == UNKNOWN, outward, np.maximum(inward, outward))
        found = np.where(found == SHARED, UNKNOWN, found)
        made = np.where(named, objects.fixed, found)
        if (made == roles).all():
            break
        roles = made
    return roles


def _holder(elf: Elf, addr: int) -> Section | None:
    """The section in the file that holds an address."""
    return next((s for s in elf.sections if s.in_file and s.addr <= addr < s.end_addr), None)


def _i32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little", signed=True)

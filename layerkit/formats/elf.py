"""ELF64 little-endian files as a view: sections, segments, symbols, address <-> file offset.

Reads only what layerkit needs and checks it: every table lies inside the file, every section that
occupies the file lies inside it. Spec: System V ABI, "Object Files" (gABI 4.1), chapter 4 and 5.
Limits: 64-bit little-endian only; at most 65,279 sections (no extended numbering).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError

__all__ = ["Elf", "Section", "Segment", "Symbol", "parse_elf", "strip_symbols"]

EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR: Final = struct.Struct("<IIQQQQIIQQ")
PHDR: Final = struct.Struct("<IIQQQQQQ")
SYM: Final = struct.Struct("<IBBHQQ")
assert (EHDR.size, SHDR.size, PHDR.size, SYM.size) == (64, 64, 56, 24)

MACHINE_AMD64: Final = 62
MACHINE_ARM64: Final = 183
TYPE_EXEC: Final = 2  # ET_EXEC; PIE is ET_DYN
SHT_SYMTAB: Final = 2
SHT_NOBITS: Final = 8
SHF_WRITE: Final = 1
SHF_ALLOC: Final = 2
SHF_EXECINSTR: Final = 4
NAME_LIMIT: Final = 1 << 10  # bytes of a section's name; Go's longest has 18
NAMES_LIMIT: Final = 4  # times the file: bytes of all symbols' names, which may share bytes
PT_LOAD: Final = 1
PT_INTERP: Final = 3


@dataclass(frozen=True, slots=True)
class Section:
    """One row of the section header table; `offset` and `size` are in the file (bytes)."""

    name: str
    kind: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    align: int

    @property
    def in_file(self) -> bool:
        return self.kind != SHT_NOBITS

    @property
    def end_addr(self) -> int:
        return self.addr + self.size


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of the program header table."""

    kind: int
    flags: int
    offset: int
    addr: int
    file_size: int
    mem_size: int
    align: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A sized, defined symbol."""

    name: bytes
    addr: int
    size: int


@dataclass(frozen=True, slots=True)
class Elf:
    """A parsed file; `data` is the whole of it."""

    data: bytes
    machine: int
    kind: int
    section_table_offset: int
    segment_table_offset: int
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]

    def section(self, name: str) -> Section | None:
        return next((s for s in self.sections if s.name == name), None)

    def bytes_of(self, section: Section) -> bytes:
        if not section.in_file:
            return b""
        return self.data[section.offset : section.offset + section.size]

    def symbols(self) -> list[Symbol]:
        """Sized symbols in table order; empty for a stripped file. Raises FormatError for a name
        without an end, and for names that come to more than NAMES_LIMIT times the file."""
        table = next((s for s in self.sections if s.kind == SHT_SYMTAB), None)
        if table is None or table.link >= len(self.sections):
            return []
        names = self.bytes_of(self.sections[table.link])
        found = []
        left = NAMES_LIMIT * len(self.data)
        raw = self.bytes_of(table)
        for name, _info, _other, index, addr, size in SYM.iter_unpack(
            raw[: len(raw) // SYM.size * SYM.size]
        ):
            if index and size and name < len(names):
                end = names.find(b"\0", name)
                left -= end - name
                if end < 0 or left < 0:
                    raise FormatError("elf: names of symbols have no end", offset=table.offset)
                found.append(Symbol(names[name:end], addr, size))
        return found


def parse_elf(data: bytes) -> Elf:
    """Parse an ELF64 little-endian file; anything else is a FormatError."""
    if len(data) < EHDR.size or data[:6] != b"\x7fELF\x02\x01":
        raise FormatError("not an ELF64 little-endian file")
    (_, kind, machine, _, _, phoff, shoff, _, ehsize, phentsize, phnum, shentsize, shnum, names) = (
        EHDR.unpack_from(data, 0)
    )
    if ehsize != EHDR.size or (shnum and shentsize != SHDR.size) or phentsize not in (0, PHDR.size):
        raise FormatError("elf: unusual header sizes", offset=52)
    if shoff + shnum * SHDR.size > len(data) or phoff + phnum * PHDR.size > len(data):
        raise FormatError("elf: header tables lie outside the file", offset=32)
    raw = [SHDR.unpack_from(data, shoff + index * SHDR.size) for index in range(shnum)]
    sections = []
    for row in raw:
        name, shtype, flags, addr, offset, size, link, _, align, _ = row
        if shtype != SHT_NOBITS and shtype != 0 and offset + size > len(data):
            raise FormatError("elf: a section lies outside the file", offset=shoff)
        sections.append(
            Section(_name(data, raw, names, name), shtype, flags, addr, offset, size, link, align)
        )
    segments = []
    for index in range(phnum):
        ptype, flags, offset, addr, _, file_size, mem_size, align = PHDR.unpack_from(
            data, phoff + index * PHDR.size
        )
        segments.append(Segment(ptype, flags, offset, addr, file_size, mem_size, align))
    return Elf(data, machine, kind, shoff, phoff, tuple(sections), tuple(segments))


def _name(data: bytes, rows: list[tuple[int, ...]], table: int, name: int) -> str:
    if not 0 < table < len(rows):
        return ""
    start, size = rows[table][4], rows[table][5]
    room = min(size, name + NAME_LIMIT)
    end = data.find(b"\0", start + name, start + room) if name < size else -1
    if end < 0:
        raise FormatError("elf: a section name lies outside its table, or is long", offset=start)
    return data[start + name : end].decode("latin-1")


def strip_symbols(elf: Elf) -> bytes:
    """The file as Go's linker writes it with `-s`: without .symtab and .strtab.

    Go puts both at the end of the file, and their names side by side into .shstrtab. That lies
    behind them or before them (go1.22 to go1.27: what is left does not move), or in the middle of
    the read-only data (go1.20, go1.21: what lies behind it moves unless alignment takes up the
    difference). Source: src/cmd/link/internal/ld/elf.go doelf, asmbElf. Raises FormatError where
    something would move; a test compares the result with the linker's own.
    """
    dropped = [s for s in elf.sections if s.name in (".symtab", ".strtab")]
    if not dropped:
        return elf.data
    rows = [i for i, s in enumerate(elf.sections) if s.name not in (".symtab", ".strtab")]
    kept = [elf.sections[index] for index in rows]
    names = next((s for s in kept if s.name == ".shstrtab" and s.in_file), None)
    table = elf.bytes_of(names) if names else b""
    cut = table.find(_SYMBOL_NAMES)
    if names is None or cut < 0 or len(dropped) != 2:
        raise FormatError("elf: no names of a symbol table to take out")
    short = table[: cut + 1] + table[cut + len(_SYMBOL_NAMES) :]
    first = min(s.offset for s in dropped)
    behind = [s for s in kept if s.in_file and s.size and s.offset >= first]
    if behind == [names]:
        place, out = first, bytearray(elf.data[:first] + short)
    elif behind or _next_offset(kept, names, len(short)) != _next_offset(kept, names, len(table)):
        raise FormatError("elf: symbols cannot be taken out without moving something")
    else:
        place, out = names.offset, bytearray(elf.data[:first])
        out[place : place + len(table)] = short.ljust(len(table), b"\0")
    at, headers = elf.section_table_offset, []
    for index, section in zip(rows, kept, strict=True):
        row = list(SHDR.unpack_from(elf.data, at + index * SHDR.size))
        row[0] -= (len(table) - len(short)) * (row[0] > cut + 1)
        if section is names:
            row[4], row[5] = place, len(short)
        headers.append(SHDR.pack(*row))
    size = len(elf.sections) * SHDR.size
    out[at : at + size] = b"".join(headers).ljust(size, b"\0")
    header = list(EHDR.unpack_from(elf.data, 0))
    header[12], header[13] = len(kept), next(i for i, s in enumerate(kept) if s is names)
    EHDR.pack_into(out, 0, *header)
    return bytes(out)


_SYMBOL_NAMES: Final = b"\0.symtab\0.strtab\0"


def _next_offset(sections: list[Section], table: Section, size: int) -> int:
    """Where the section behind `table` begins when the table has `size` bytes; -1: there is none,
    or it is elsewhere."""
    behind = [s for s in sections if s.in_file and s.size and s.offset > table.offset]
    if not behind:
        return -1
    after = min(behind, key=lambda s: s.offset)
    return -(-(table.offset + size) // max(1, after.align)) * max(1, after.align)

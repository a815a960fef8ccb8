"""Single-byte mutations of a binary, at places anywhere and at places that matter.

The biased half: headers, Go's module data, the start and a random place of each table in
.gopclntab, and the section headers; most bytes of a binary are code, which no reader interprets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

from layerkit.formats.elf import EHDR, PHDR, SHDR, parse_elf
from layerkit.formats.golang import PCHEADER, parse_go_tables

__all__ = ["HALVES", "mutations"]

HALVES = ("uniform", "biased")
Range = tuple[int, int]


def mutations(binary: bytes, half: str, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """A description and a copy of the binary with one byte changed, `count` times."""
    rng = random.Random(seed)
    ranges = [(0, len(binary))] if half == "uniform" else _places(binary)
    for index in range(count):
        low, high = ranges[index % len(ranges)]
        at, flip = rng.randrange(low, high), rng.randrange(1, 256)
        changed = bytearray(binary)
        changed[at] ^= flip
        yield f"seed {seed}, mutation {index}: byte {at:#x} ^ {flip:#x}", bytes(changed)


def _places(binary: bytes) -> list[Range]:
    """Ranges of file positions, taken in turn."""
    elf = parse_elf(binary)
    go = parse_go_tables(elf)
    at = go.pclntab.offset
    tables = (go.name_off, go.cu_off, go.file_off, go.pctab_off, go.func_off, go.pclntab.size)
    found = [(0, EHDR.size), (at, at + PCHEADER.size)]
    found.append(
        (elf.segment_table_offset, elf.segment_table_offset + PHDR.size * len(elf.segments))
    )
    found.append(
        (elf.section_table_offset, elf.section_table_offset + SHDR.size * len(elf.sections))
    )
    home = next(s for s in elf.sections if s.addr <= go.moduledata_addr < s.end_addr)
    data = go.moduledata_addr - home.addr + home.offset
    found.append((data, data + 8 * len(go.words)))
    for low, high in pairwise(tables):
        found += [(at + low, at + low + 64), (at + low, at + high)]
    found.append((at + go.func_off, at + go.func_off + 8 * go.func_count))
    found.append((at + int(go.records[0]), at + go.pclntab.size))
    for name in (
        ".rodata",
        ".typelink",
        ".itablink",
        ".go.buildinfo",
        ".go.fipsinfo",
        ".go.module",
    ):
        section = elf.section(name)
        if section is not None and section.in_file and section.size:
            found.append((section.offset, section.offset + section.size))
    types = next(s for s in elf.sections if s.addr <= go.types < s.end_addr)
    low = types.offset + go.types - types.addr
    found.append((low, min(low + go.etypes - go.types, types.offset + types.size)))
    return [(low, high) for low, high in found if low < high <= len(binary)]

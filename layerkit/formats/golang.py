"""Go's own tables in a linked binary: module data, function table, type descriptors, build info.

A view over `elf.Elf`, with everything bounds-checked: a table that does not hold together is a
FormatError, and the address-free form then leaves the file raw. Knows Go 1.20 to 1.27.

Sources: src/runtime/symtab.go (moduledata), src/debug/gosym/pclntab.go, src/internal/abi/type.go,
src/cmd/link/internal/ld/pcln.go; releases go1.20 to go1.27.
"""

from __future__ import annotations

import contextlib
import re
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from layerkit.errors import FormatError
from layerkit.formats.buildinfo import read_build_info
from layerkit.formats.elf import Elf, Section

__all__ = ["GoTables", "go_release", "parse_go_tables"]

Int64s = npt.NDArray[np.int64]

PCLN_MAGIC: Final = (0xFFFFFFF1,)  # go1.20 and later: debug/gosym/pclntab.go go120magic
PCHEADER: Final = struct.Struct("<IHBBQQQQQQQQ")
assert PCHEADER.size == 72
PCDATA_LIMIT: Final = 64  # go1.27 knows 5 kinds
FUNC_SIZE: Final = 44  # runtime2.go _func up to nfuncdata, go1.20 and later
# Word indexes in moduledata, equal from go1.20 to go1.26 (runtime/symtab.go)
(MD_FUNCNAMETAB, MD_FTAB, MD_FINDFUNCTAB, MD_MINPC, MD_MAXPC, MD_TEXT, MD_ETEXT) = (
    1,
    16,
    19,
    20,
    21,
    22,
    23,
)
MD_TYPES: Final = 37
MD_ETYPES: Final = 38


def go_release(data: bytes) -> str:
    """The Go release a binary records, such as "go1.26.8"; empty when it records none.

    Source: src/debug/buildinfo/buildinfo.go, go1.18 and later (inline strings, flag 2).
    """
    at = data.find(b"\xff Go buildinf:")
    if at < 0 or at + 33 > len(data) or not data[at + 15] & 2:
        return ""
    size = data[at + 32]
    text = data[at + 33 : at + 33 + size]
    return text.decode() if re.fullmatch(rb"go\d+\.\d+[\w.+-]*", text) else ""


@dataclass(frozen=True, slots=True)
class GoTables:
    """Where Go's tables lie. Addresses are virtual, `*_off` are offsets inside .gopclntab."""

    elf: Elf
    pclntab: Section
    release: str
    minor: int  # 26 for go1.26
    moduledata_addr: int
    words: Int64s  # moduledata as 8-byte words, at least 41
    func_count: int
    name_off: int
    cu_off: int
    file_off: int
    pctab_off: int
    func_off: int  # functab, then the _func records
    text: int
    etext: int
    types: int
    etypes: int
    rodata: int
    gofunc: int
    findfunctab: int
    entries: Int64s  # func_count + 1 addresses, the last is the end of the text
    records: Int64s  # func_count offsets of _func records inside .gopclntab

    @property
    def pcln(self) -> bytes:
        return self.elf.bytes_of(self.pclntab)


def parse_go_tables(elf: Elf) -> GoTables:
    """Find and check Go's tables; a FormatError says why a binary has none that we know."""
    section = elf.section(".gopclntab")
    if section is None or not section.in_file or section.size < PCHEADER.size:
        raise FormatError("no .gopclntab: not a Go binary, or linked in another mode")
    try:
        return _parse_tables(elf, section)
    except FormatError as exc:
        why = _find_foreign(elf)
        if not why:
            raise
        raise FormatError(why) from exc


def _find_foreign(elf: Elf) -> str:
    """What others than Go's compiler put into a binary, for which its tables are not as Go's linker
    alone writes them; "" for nothing that can be seen."""
    # of the race detector's C code, linked by Go itself: src/runtime/race
    with contextlib.suppress(FormatError):
        if ("-race", "true") in read_build_info(elf).settings:
            return "built with -race, whose C code has no place in Go's tables"
    # the C library's start files have these, and what gcc and clang compile
    if elf.section(".init") is not None or elf.section(".eh_frame") is not None:
        return "linked by C's linker (-linkmode=external, or cgo with code in C), not by Go's"
    return ""


def _parse_tables(elf: Elf, section: Section) -> GoTables:
    data = elf.bytes_of(section)
    magic, zero, _quantum, ptr_size, *rest = PCHEADER.unpack_from(data)
    func_count, _files, text, name_off, cu_off, file_off, pctab_off, func_off = rest
    if magic not in PCLN_MAGIC or zero or ptr_size != 8:
        raise FormatError(f"pclntab magic {magic:#x} is of a release that is not known")
    if not PCHEADER.size <= name_off <= cu_off <= file_off <= pctab_off <= func_off:
        raise FormatError("pclntab tables are not in the known order")
    if func_off + 8 * func_count + 4 > len(data) or not func_count:
        raise FormatError("functab lies outside pclntab")
    addr, words = _find_moduledata(elf, section, name_off)
    table = np.frombuffer(data, "<u4", 2 * func_count + 1, func_off).astype(np.int64)
    text = int(words[MD_TEXT])
    entries, records = table[0::2] + text, table[1::2] + func_off
    if (np.diff(entries) <= 0).any() or records.max() + FUNC_SIZE > len(data):
        raise FormatError("functab is not in order")
    raw = np.frombuffer(data, np.uint8)
    at = records[:func_count]
    pcdata = sum(raw[at + 28 + k].astype(np.int64) << (8 * k) for k in range(4))
    if int(np.max(pcdata)) > PCDATA_LIMIT:
        raise FormatError("a function has more pcdata than any compiler writes")
    if int((at + FUNC_SIZE + 4 * (pcdata + raw[at + 43])).max()) > len(data):
        raise FormatError("a function record lies outside pclntab")
    release = go_release(elf.data)
    match = re.match(r"go1\.(\d+)", release)
    rodata, gofunc = _rodata_and_gofunc(elf, section, words)
    return GoTables(
        elf,
        section,
        release,
        int(match[1]) if match else 0,
        addr,
        words,
        func_count,
        name_off,
        cu_off,
        file_off,
        pctab_off,
        func_off,
        text,
        int(words[MD_ETEXT]),
        int(words[MD_TYPES]),
        int(words[MD_ETYPES]),
        rodata,
        gofunc,
        int(words[MD_FINDFUNCTAB]),
        entries,
        records,
    )


def _find_moduledata(elf: Elf, pclntab: Section, name_off: int) -> tuple[int, Int64s]:
    """moduledata starts with a pointer to pclntab and then the function name table's slice."""
    for section in elf.sections:
        if not section.in_file or not section.addr or section.size < 41 * 8 or section.addr % 8:
            continue
        raw = elf.bytes_of(section)
        words = np.frombuffer(raw[: len(raw) // 8 * 8], "<i8")
        for at in np.flatnonzero(words == pclntab.addr):
            found = words[at:]
            if len(found) > 41 and found[MD_FUNCNAMETAB] == pclntab.addr + name_off:
                if not found[MD_TEXT] <= found[MD_MINPC] < found[MD_MAXPC] <= found[MD_ETEXT]:
                    raise FormatError("moduledata is of a release that is not known")
                return section.addr + 8 * int(at), found[:80].copy()
    raise FormatError("no moduledata points to pclntab")


def _rodata_and_gofunc(elf: Elf, pclntab: Section, words: Int64s) -> tuple[int, int]:
    """`rodata` and `gofunc` stand side by side behind the types; releases differ in what is
    between (typedesclen and itaboffset from go1.27), so look for the pair."""
    for index in range(MD_ETYPES, min(len(words) - 1, MD_ETYPES + 8)):
        rodata, gofunc = int(words[index]), int(words[index + 1])
        inside = pclntab.addr < gofunc < pclntab.end_addr
        named = elf.section(".rodata")
        if named and rodata == named.addr and (inside or named.addr <= gofunc < named.end_addr):
            return rodata, gofunc
    raise FormatError("moduledata names no gofunc: a release that is not known")

"""Which 8-byte words of data are addresses. Only the encoder asks: what it accepts is marked in the
form.

A number that only looks like an address is harmless for the round trip, but it cuts some object in
two, and it changes when what lies at that address moves. So a word is believed when something else
points to the same place, or when its own place makes an address likely.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from layerkit.formats.addressfree.model import Int64s, Region, read_u32
from layerkit.formats.elf import SHF_EXECINSTR, SHF_WRITE
from layerkit.formats.golang import GoTables
from layerkit.formats.sets import is_in

__all__ = ["MODULEDATA_SIZE", "accept_words", "candidate_words"]

Bools = NDArray[np.bool_]

MODULEDATA_SIZE: Final = 640  # bytes, at least its part with addresses; 592 in go1.26
READ_ONLY, VARIABLES, NO_POINTERS, TABLES = range(4)  # what a section holds
TEXT, DATA, ZEROS = range(3)  # what a target lies in


def candidate_words(go: GoTables, regions: list[Region]) -> tuple[Int64s, Int64s]:
    """File positions and values of the aligned words that fall into the module's addresses. Into
    pclntab nothing points but moduledata."""
    low = min(r.addr for r in regions)
    high = max(r.addr + r.size for r in regions)
    data = np.frombuffer(go.elf.data, np.uint8)
    pos_parts, target_parts = [], []
    for region in regions:
        if not region.has_words or region.offset < 0:
            continue
        first = region.offset + (-region.addr) % 8
        count = max(0, (region.offset + region.size - first) // 8)
        words = np.frombuffer(data[first : first + 8 * count].tobytes(), "<i8")
        hit = np.flatnonzero((words >= low) & (words <= high))
        pos_parts.append(first + 8 * hit)
        target_parts.append(words[hit])
    pos, target = np.concatenate(pos_parts), np.concatenate(target_parts)
    inside = (target >= go.pclntab.addr) & (target < go.pclntab.end_addr)
    keep = ~inside | _in_moduledata(go, pos)
    return pos[keep], target[keep]


def _in_moduledata(go: GoTables, pos: Int64s) -> Bools:
    home = next(s for s in go.elf.sections if s.addr <= go.moduledata_addr < s.end_addr)
    at = home.offset + go.moduledata_addr - home.addr
    inside: Bools = (pos >= at) & (pos < at + MODULEDATA_SIZE)
    return inside


def accept_words(go: GoTables, pos: Int64s, target: Int64s, known: Int64s) -> Bools:
    """Which candidates are addresses. `known`: where code, symbols, tables and types point to."""
    sections = [s for s in go.elf.sections if s.addr and s.size]
    holds = np.array([_holds(s.name, s.flags) for s in sections])
    kinds = np.array(
        [TEXT if s.flags & SHF_EXECINSTR else DATA if s.in_file else ZEROS for s in sections]
    )
    offsets = np.array([s.offset if s.in_file else 1 << 62 for s in sections], np.int64)
    sizes = np.array([s.size for s in sections], np.int64)
    by_offset = np.argsort(offsets, kind="stable")
    source = by_offset[np.searchsorted(offsets[by_offset], pos, side="right") - 1]
    addrs = np.array([s.addr for s in sections], np.int64)
    by_addr = np.argsort(addrs, kind="stable")
    home = by_addr[np.maximum(np.searchsorted(addrs[by_addr], target, side="right") - 1, 0)]
    inside = (target >= addrs[home]) & (target < addrs[home] + sizes[home])
    edges = np.concatenate([addrs, addrs + sizes, go.entries])
    own, into = holds[source], np.where(inside, kinds[home], -1)
    aligned = target % 8 == 0
    believed: Bools = is_in(target, known) | is_in(target, edges)
    believed &= own != NO_POINTERS
    believed |= _in_moduledata(go, pos) | (own == TABLES)
    # variables of every type; a pointer may go anywhere but into the middle of code
    believed |= (own == VARIABLES) & (into >= DATA)
    # literals: strings and other literals; a variable that nobody else names is unlikely
    literal = (own == READ_ONLY) & (into == DATA)
    believed |= literal & ((holds[home] == READ_ONLY) | aligned)
    # without pointers by their type: only the linker's own objects hold addresses, which are init
    # tasks, lists and slices of them, and pointers to moduledata
    believed |= (own == NO_POINTERS) & (into == DATA) & aligned & _in_list(pos, home)
    believed |= (own == NO_POINTERS) & (is_in(target, addrs) | (target == go.moduledata_addr))
    believed |= (own == NO_POINTERS) & (into == DATA) & aligned & _is_slice(go, pos)
    believed |= _init_tasks(go, pos, (own == NO_POINTERS) & is_in(target, go.entries))
    # jump tables: several words in a row into one function
    function = np.searchsorted(go.entries, target, side="right")
    believed |= (own == READ_ONLY) & (into == TEXT) & _in_list(pos, function)
    return believed & (inside | is_in(target, edges))


def _holds(name: str, flags: int) -> int:
    if name in (".noptrdata", ".noptrbss"):
        return NO_POINTERS
    if name in (".data", ".bss"):
        return VARIABLES
    if name == ".rodata" or (name in (".go.type", ".go.func") and not flags & SHF_WRITE):
        return READ_ONLY
    return TABLES


def _init_tasks(go: GoTables, pos: Int64s, chosen: Bools) -> Bools:
    """Functions of init tasks: a run of words behind their count, which is a 32-bit number behind
    another since go1.21 and was a word before.
    Source: src/runtime/proc.go initTask, go1.20 to go1.27."""
    index = np.flatnonzero(chosen)
    if not len(index):
        return chosen
    begins = np.concatenate(([True], np.diff(pos[index]) != 8))
    run = np.cumsum(begins) - 1
    length = np.bincount(run)[run]
    first = pos[index][begins][run]
    data = np.frombuffer(go.elf.data, np.uint8)
    head = np.maximum(first - 8, 0)
    low, high = read_u32(data, head), read_u32(data, head + 4)
    fine = ((low == 0) & (high == length)) | ((high == 0) & (low > 0) & (low <= length))
    out = np.zeros(len(pos), bool)
    out[index[fine]] = True
    return out


def _is_slice(go: GoTables, pos: Int64s) -> Bools:
    """Words with two equal small numbers behind: the length and capacity of a literal."""
    data = np.frombuffer(go.elf.data, np.uint8)
    at = np.minimum(pos, len(data) - 24)
    length, capacity = read_u32(data, at + 8), read_u32(data, at + 16)
    small = (read_u32(data, at + 12) == 0) & (read_u32(data, at + 20) == 0)
    fine: Bools = small & (length == capacity) & (length > 0)
    return fine


def _in_list(pos: Int64s, group: Int64s) -> Bools:
    """Words right beside another word of the same group."""
    pair = (np.diff(pos) == 8) & (np.diff(group) == 0)
    return np.append(pair, False) | np.concatenate(([False], pair))

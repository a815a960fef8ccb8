"""Reference sites in machine code: where a field holds a distance to somewhere else.

Two views. `find_candidates` is the decoder's: a byte pattern, which takes some bytes that are no
sites; the form lists those exceptions. It is part of the format and may never change for a machine
number. `disassemble` is the encoder's, for amd64: the true sites, by iced-x86. On arm64 every
aligned instruction that matches is taken for true.

A site's field holds either a distance (as linked) or a value (an id, in the form); both views of
the field and their writing are here, so that nobody else knows instruction layouts.

Sources: Intel SDM volume 2, chapter 2 and appendix A (opcode maps, ModRM mod=00 rm=101); Arm ARM
(DDI 0487) C4.1, C6.2.11 ADRP, C6.2.26 B, C6.2.34 BL.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from layerkit.formats import kernel
from layerkit.formats.packed import read_u32, write_u32
from layerkit.formats.sets import is_in

if TYPE_CHECKING:
    from iced_x86 import Decoder

__all__ = [
    "AMD64",
    "ARM64",
    "Candidates",
    "branch_values",
    "disassemble",
    "find_candidates",
    "find_sites",
    "read_targets",
    "read_values",
    "write_targets",
    "write_values",
]

Int64s = npt.NDArray[np.int64]
Bytes8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

AMD64: Final = 0  # machine numbers of the form
ARM64: Final = 1
REL32, BRANCH26, PAGE = 0, 1, 2  # kinds of site
MARGIN: Final = 12  # bytes at the end that hold no candidate: field, immediate, and room to look
FIELDS_A_CALL: Final = 1 << 16  # of the kernel's sweep: 0.5 MB
ICED_BATCH: Final = 16  # instructions; those that the kernel does not know stand together
_GROUP3: Final = 8  # mark: the immediate is there only when ModRM says TEST


def _sizes(rows: dict[int, tuple[int, ...]]) -> Bytes8:
    """A table by opcode from size -> opcodes."""
    table = np.zeros(256, np.uint8)
    for size, opcodes in rows.items():
        table[list(opcodes)] = size
    return table


# Bytes of immediate by opcode, of the one-byte map and of the 0F map
_PLAIN_SIZE: Final = _sizes(
    {
        1: (0x80, 0x83, 0xC6, 0xC0, 0xC1, 0x6B),
        4: (0x81, 0xC7, 0x69),
        1 | _GROUP3: (0xF6,),
        4 | _GROUP3: (0xF7,),
    }
)
_ESCAPED_SIZE: Final = _sizes({1: (0xBA, 0xA4, 0xAC, 0xC2, 0xC6, 0x70)})


@dataclass(frozen=True, slots=True)
class Candidates:
    """Fields in a text, ascending. `pos` is where the field (amd64) or its instruction (arm64)
    starts; `next_pos` where a distance counts from; `scale` is log2 of the unit of the low half of
    a page pair."""

    pos: Int64s
    next_pos: Int64s
    kind: Bytes8
    scale: Bytes8

    def select(self, chosen: npt.NDArray[np.generic]) -> Candidates:
        """Those that a mask or an index array names."""
        return Candidates(
            self.pos[chosen], self.next_pos[chosen], self.kind[chosen], self.scale[chosen]
        )

    def arrays(self) -> tuple[Int64s, Int64s, Bytes8, Bytes8]:
        return self.pos, self.next_pos, self.kind, self.scale


def find_candidates(text: bytes | Bytes8, machine: int = AMD64) -> Candidates:
    """All fields that look like sites: 8 ms for 2.7 MB, 40 ms without the kernel."""
    data = np.frombuffer(text, np.uint8)
    found = kernel.find_candidates(data, machine)
    if found is not None:
        return Candidates(*found)
    return _find_arm64(data) if machine == ARM64 else _find_amd64(data)


def find_sites(text: bytes, addr: int, machine: int = AMD64) -> Candidates:
    """The candidates that are true sites: on amd64 those that are fields of an instruction."""
    found = find_candidates(text, machine)
    if machine != AMD64:
        return found
    return found.select(is_in(found.pos, disassemble(text, addr)))


def _find_amd64(t: Bytes8) -> Candidates:
    """rel32 branches (E8, E9, 0F 8x) and RIP-relative operands."""
    n = len(t)
    if n < MARGIN + 4:
        return _no_candidates()
    b1 = t[3 : n - MARGIN]  # the byte before field position p = 4 .. n - MARGIN
    b2 = t[2 : n - MARGIN - 1]
    branch = ((b1 & 0xFE) == 0xE8) | ((b2 == 0x0F) & ((b1 & 0xF0) == 0x80))
    hit = branch | ((b1 & 0xC7) == 0x05)
    index = np.flatnonzero(hit)
    pos = index + 4
    after = pos + 4 + _immediate_sizes(t, pos, branch[index])
    zero = np.zeros(len(pos), np.uint8)
    return Candidates(pos, after, zero + np.uint8(REL32), zero)


def _no_candidates() -> Candidates:
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.uint8)
    return Candidates(none, none, nothing, nothing)


def _find_arm64(t: Bytes8) -> Candidates:
    """B and BL, and ADRP followed by ADD or a load or store with an unsigned offset from its
    register."""
    w = np.frombuffer(t[: len(t) // 4 * 4].tobytes(), "<u4")
    if len(w) < 2:
        return _no_candidates()
    branch = np.flatnonzero((w & 0x7C000000) == 0x14000000)
    first, second = w[:-1], w[1:]
    add = (second & 0xFFC00000) == 0x91000000
    memory = (second & 0x3B000000) == 0x39000000
    same = (second >> 5 & 31) == (first & 31)
    pair = np.flatnonzero(((first & 0x9F000000) == 0x90000000) & (add | memory) & same)
    size = (second[pair] >> 30).astype(np.uint8)
    # 128-bit loads and stores: vector bit, opc high bit, size 0
    wide = ((second[pair] & 0x04800000) == 0x04800000) & (size == 0)
    scale = np.where(add[pair], 0, np.where(wide, 4, size)).astype(np.uint8)
    index = np.concatenate([branch, pair])
    kind = np.concatenate(
        [np.full(len(branch), BRANCH26, np.uint8), np.full(len(pair), PAGE, np.uint8)]
    )
    scale = np.concatenate([np.zeros(len(branch), np.uint8), scale])
    order = np.argsort(index, kind="stable")
    pos = 4 * index[order].astype(np.int64)
    return Candidates(pos, pos, kind[order], scale[order])


def branch_values(ids: Int64s) -> Int64s:
    """Ids as a 26-bit branch field holds them: never like a distance under 2 MiB."""
    value = (ids ^ (ids >> 26)) & 0x3FFFFFF
    near = ((value + (1 << 19)) & 0x3FFFFFF) < 1 << 20
    return np.where(near & (ids > 0), value ^ 0x1000000, value)


def _signed(value: Int64s, bits: int) -> Int64s:
    return (value ^ (1 << (bits - 1))) - (1 << (bits - 1))


def read_values(data: Bytes8, offset: int, found: Candidates) -> Int64s:
    """The fields as unsigned numbers; `offset` is where the text starts in `data`."""
    done = kernel.read_values(data, offset, found.arrays())
    if done is not None:
        return done
    word = read_u32(data, found.pos + offset)
    value = np.where(found.kind == BRANCH26, word & 0x3FFFFFF, word)
    page = np.flatnonzero(found.kind == PAGE)
    if len(page):
        low = read_u32(data, found.pos[page] + offset + 4)
        value[page] = _page_field(word[page]) << 12 | (low >> 10 & 0xFFF)
    return value


def read_targets(data: Bytes8, offset: int, found: Candidates, addr: int) -> Int64s:
    """The addresses that the fields point to as distances; `addr` is the text's."""
    done = kernel.read_targets(data, offset, found.arrays(), addr)
    if done is not None:
        return done
    value = read_values(data, offset, found)
    target = found.next_pos + addr + _signed(value & 0xFFFFFFFF, 32)
    branch = found.kind == BRANCH26
    target[branch] = (found.pos + addr)[branch] + 4 * _signed(value[branch], 26)
    page = found.kind == PAGE
    base = (found.pos[page] + addr) >> 12
    low = (value[page] & 0xFFF) << found.scale[page]
    target[page] = ((base + _signed(value[page] >> 12, 21)) << 12) + low
    return target


def write_values(data: Bytes8, offset: int, found: Candidates, value: Int64s) -> None:
    """Put unsigned numbers into the fields."""
    if kernel.write_values(data, offset, found.arrays(), value):
        return
    pos = found.pos + offset
    plain = found.kind == REL32
    write_u32(data, pos[plain], value[plain])
    branch = found.kind == BRANCH26
    word = read_u32(data, pos[branch]) & ~0x3FFFFFF
    write_u32(data, pos[branch], word | (value[branch] & 0x3FFFFFF))
    page = found.kind == PAGE
    at, high = pos[page], value[page] >> 12
    word = read_u32(data, at) & ~0x60FFFFE0
    write_u32(data, at, word | (high & 3) << 29 | (high >> 2 & 0x7FFFF) << 5)
    word = read_u32(data, at + 4) & ~0x003FFC00
    write_u32(data, at + 4, word | (value[page] & 0xFFF) << 10)


def write_targets(data: Bytes8, offset: int, found: Candidates, addr: int, target: Int64s) -> None:
    """Put distances to the target addresses into the fields."""
    if kernel.write_targets(data, offset, found.arrays(), addr, target):
        return
    value = (target - found.next_pos - addr) & 0xFFFFFFFF
    branch = found.kind == BRANCH26
    value[branch] = ((target - found.pos - addr)[branch] >> 2) & 0x3FFFFFF
    page = found.kind == PAGE
    base = (found.pos[page] + addr) >> 12
    high = ((target[page] >> 12) - base) & 0x1FFFFF
    value[page] = high << 12 | (target[page] & 0xFFF) >> found.scale[page]
    write_values(data, offset, found, value)


def _page_field(word: Int64s) -> Int64s:
    """ADRP's 21 bits: two at 29, nineteen at 5."""
    return (word >> 29 & 3) | (word >> 5 & 0x7FFFF) << 2


def _immediate_sizes(t: Bytes8, pos: Int64s, is_branch: Bools) -> Int64s:
    """Bytes of immediate behind the displacement, from the opcode before the ModRM byte."""
    modrm, op, pre, pre2 = t[pos - 1], t[pos - 2], t[pos - 3], t[pos - 4]
    escape = pre == 0x0F
    group3 = (modrm & 0x38) == 0  # F6 /0 and F7 /0 are TEST with an immediate
    plain = _PLAIN_SIZE[op]
    plain = np.where((plain < _GROUP3) | group3, plain & 7, 0)
    wide16 = (plain == 4) & ((pre == 0x66) | ((pre2 == 0x66) & ((pre & 0xF0) == 0x40)))
    plain = np.where(wide16, 2, plain)
    size = np.where(escape, _ESCAPED_SIZE[op], plain).astype(np.int64)
    size[is_branch] = 0
    return size


def disassemble(text: bytes, addr: int) -> Int64s:
    """Positions of all true 4-byte rel32 and RIP-relative fields, by linear sweep. Go's amd64 text
    holds no data, so the sweep stays in step. The kernel sweeps what it knows, iced-x86 the rest:
    27 ms for 2.7 MB, 240 ms without the kernel."""
    from iced_x86 import Decoder

    data = np.frombuffer(text, np.uint8)
    decoder = Decoder(64, text, ip=addr)
    found = np.empty(FIELDS_A_CALL, np.int64)
    parts: list[Int64s] = []
    at, batch = 0, ICED_BATCH if kernel.is_loaded() else len(text)
    while at < len(text):
        count, at = kernel.amd64_fields(data, at, found)
        parts.append(found[:count].copy())
        if count == len(found):
            continue
        decoder.position, decoder.ip = at, addr + at
        parts.append(_disassemble_some(decoder, batch) - addr)
        at = decoder.position
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _disassemble_some(decoder: Decoder, count: int) -> Int64s:
    """Addresses of the fields of the next `count` instructions, by iced-x86."""
    from iced_x86 import OpKind

    near = OpKind.NEAR_BRANCH64
    constants = decoder.get_constant_offsets
    found: list[int] = []
    add = found.append
    for instruction in islice(decoder, count):
        if instruction.is_ip_rel_memory_operand:
            offsets = constants(instruction)
            if offsets.displacement_size == 4:
                add(instruction.ip + offsets.displacement_offset)
        elif instruction.op0_kind == near:
            offsets = constants(instruction)
            if offsets.immediate_size == 4:
                add(instruction.ip + offsets.immediate_offset)
    return np.array(found, np.int64)

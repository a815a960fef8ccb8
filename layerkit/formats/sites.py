"""Reference sites in machine code: where a field holds a distance to somewhere else.

Two views of amd64 code. `find_candidates` is the decoder's: a byte pattern (opcode or ModRM before
the field), which takes some bytes that are no sites; the form lists those exceptions. It is part of
the format and may never change. `disassemble` is the encoder's: the true sites, by iced-x86.

Source: Intel SDM volume 2, chapter 2 and appendix A (opcode maps, ModRM mod=00 rm=101).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Candidates", "disassemble", "find_candidates"]

Int64s = npt.NDArray[np.int64]
Bytes8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

MARGIN: Final = 12  # bytes at the end that hold no candidate: field, immediate, and room to look
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
    """Positions of 4-byte displacement fields in the text, ascending, and where each instruction
    ends (the displacement counts from there)."""

    pos: Int64s
    next_pos: Int64s
    is_branch: Bools


def find_candidates(text: bytes | Bytes8) -> Candidates:
    """All fields that look like rel32 branches or RIP-relative operands. One pass, about 40 ms for
    2.7 MB; the plain rule is `tests/formats/test_sites.py::plain_candidates`."""
    t = np.frombuffer(text, np.uint8)
    n = len(t)
    if n < MARGIN + 4:
        none = np.zeros(0, np.int64)
        return Candidates(none, none, np.zeros(0, np.bool_))
    b1 = t[3 : n - MARGIN]  # the byte before field position p = 4 .. n - MARGIN
    b2 = t[2 : n - MARGIN - 1]
    branch = ((b1 & 0xFE) == 0xE8) | ((b2 == 0x0F) & ((b1 & 0xF0) == 0x80))
    hit = branch | ((b1 & 0xC7) == 0x05)
    index = np.flatnonzero(hit)
    pos = index + 4
    is_branch = branch[index]
    return Candidates(pos, pos + 4 + _immediate_sizes(t, pos, is_branch), is_branch)


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
    holds no data, so the sweep stays in step."""
    from iced_x86 import Decoder, OpKind

    near = OpKind.NEAR_BRANCH64
    decoder = Decoder(64, text, ip=addr)
    constants = decoder.get_constant_offsets
    found: list[int] = []
    add = found.append
    for instruction in decoder:
        if instruction.is_ip_rel_memory_operand:
            offsets = constants(instruction)
            if offsets.displacement_size == 4:
                add(instruction.ip + offsets.displacement_offset)
        elif instruction.op0_kind == near:
            offsets = constants(instruction)
            if offsets.immediate_size == 4:
                add(instruction.ip + offsets.immediate_offset)
    return np.array(found, np.int64) - addr

"""Write layerkit/native/amd64_table.h: how long amd64 instructions are, asked of iced-x86.

For each (prefix, REX.W, opcode map, opcode) and each class of ModRM bytes (memory or register, and
the reg bits), iced-x86 decodes samples that differ in all that must not matter: segment prefixes,
the other REX bits, the rm bits, the bytes behind. Only where all of them agree does the table hold
an answer; all else, VEX and EVEX included, stays with iced-x86 at run time. Takes half a minute.

    python tools/make_amd64_table.py            write the table
    python tools/make_amd64_table.py --check    exit 1 if the file is another
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from iced_x86 import Code, Decoder, OpKind

TABLE = Path(__file__).parent.parent / "layerkit" / "native" / "amd64_table.h"
PREFIXES = (b"", b"\x66", b"\xf3", b"\xf2", b"\xf0")
MAPS = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
NOT_OPCODES = {0x0F, 0x26, 0x2E, 0x36, 0x3E, *range(0x40, 0x50), 0x62, 0x64, 0x65, 0x66, 0x67}
NOT_OPCODES |= {0x8F, 0xC4, 0xC5, 0xF0, 0xF2, 0xF3}  # 8F is also XOP, 62 C4 C5 are EVEX and VEX
UNKNOWN, BRANCH = 15, 14  # in place of a size of immediates, which is 0 to 8

HEAD = """\
/* Written by tools/make_amd64_table.py from iced-x86: do not edit.
 *
 * FORM: whether a ModRM byte follows. If so, `sizes` holds 4 bits for each of 16 classes of ModRM
 * bytes (8 if it names a register, plus the reg bits): the size of the immediate, or UNKNOWN. If
 * not, its low 4 bits are the size, or BRANCH for a rel32, or UNKNOWN.
 * FORM_OF: by prefix (none, 66, F3, F2, F0), REX.W, map (none, 0F, 0F38, 0F3A), opcode. */
"""


def samples(wide: bool) -> list[tuple[bytes, bytes]]:
    """Segment prefix and REX byte; none of them may change an answer."""
    if wide:
        return [(b"", b"\x48"), (b"", b"\x4f"), (b"\x65", b"\x4d"), (b"\x2e", b"\x4a")]
    return [(b"", b""), (b"", b"\x47"), (b"\x64", b""), (b"\x2e", b"\x45"), (b"", b"\x42")]


def modrm_size(modrm: int, sib: int) -> int:
    """Bytes of ModRM, SIB and displacement. Source: Intel SDM volume 2, tables 2-2 and 2-3."""
    mod, rm = modrm >> 6, modrm & 7
    if mod == 3:
        return 1
    if rm == 4:
        return 2 + (4 if mod == 2 or (mod == 0 and sib & 7 == 5) else mod)
    return 1 + (4 if mod == 2 or (mod == 0 and rm == 5) else mod)


def decode(head: bytes, modrm: int, fill: int) -> tuple[int, bool, bool] | None:
    """Bytes behind the head, whether RIP-relative, whether a rel32; None if there is no such
    instruction or its field is not where we look for it."""
    decoder = Decoder(64, head + bytes([modrm]) + bytes([fill]) * 20, ip=0)
    made = decoder.decode()
    if made.code == Code.INVALID:
        return None
    at = decoder.get_constant_offsets(made)
    relative = made.is_ip_rel_memory_operand
    if relative and (at.displacement_size, at.displacement_offset) != (4, len(head) + 1):
        return None
    branch = not relative and made.op0_kind == OpKind.NEAR_BRANCH64 and at.immediate_size == 4
    if branch and at.immediate_offset != len(head):
        return None
    return made.len - len(head), relative, branch


def all_of(
    prefix: bytes, wide: bool, opcode: bytes, modrms: Iterable[int]
) -> Iterator[tuple[int, int, tuple[int, bool, bool] | None]]:
    for modrm in modrms:
        for fill in (0x00, 0x75):
            for segment, rex in samples(wide):
                yield modrm, fill, decode(segment + prefix + rex + opcode, modrm, fill)


def without_modrm(prefix: bytes, wide: bool, opcode: bytes) -> int:
    """Size behind an opcode without ModRM, BRANCH, or UNKNOWN where samples disagree."""
    first = None
    for _, _, got in all_of(prefix, wide, opcode, (0xC0, 0x04, 0x45, *range(256))):
        first = first or got
        if got is None or got != first or got[1] or got[0] > 8:
            return UNKNOWN
    assert first is not None
    return BRANCH if first[2] else first[0]


def with_modrm(prefix: bytes, wide: bool, opcode: bytes, member: int) -> int:
    """Size of the immediate in one class of ModRM bytes, or UNKNOWN where samples disagree."""
    mods = (3,) if member >= 8 else (0, 1, 2)
    modrms = [mod << 6 | (member & 7) << 3 | rm for mod in mods for rm in range(8)]
    sizes = set()
    for modrm, fill, got in all_of(prefix, wide, opcode, modrms):
        if got is None or got[2] or got[1] != (modrm & 0xC7 == 5):
            return UNKNOWN
        sizes.add(got[0] - modrm_size(modrm, fill))
        if len(sizes) > 1:
            return UNKNOWN
    size = sizes.pop()
    return size if 0 <= size <= 4 else UNKNOWN


def form(prefix: bytes, wide: bool, escape: bytes, opcode: int) -> int:
    code = escape + bytes([opcode])
    if (not escape and opcode in NOT_OPCODES) or (escape == b"\x0f" and opcode in (0x38, 0x3A)):
        return UNKNOWN
    if prefix == b"\xf0" and len(escape) == 2:
        return UNKNOWN
    plain = without_modrm(prefix, wide, code)
    if plain != UNKNOWN:
        return plain
    members = [with_modrm(prefix, wide, code, member) for member in range(16)]
    if all(size == UNKNOWN for size in members):
        return UNKNOWN
    return 1 << 64 | sum(size << 4 * member for member, size in enumerate(members))


def write_table() -> str:
    rows = [
        form(prefix, wide, escape, opcode)
        for prefix in PREFIXES
        for wide in (False, True)
        for escape in MAPS
        for opcode in range(256)
    ]
    forms = sorted(set(rows))
    place = {one: index for index, one in enumerate(forms)}
    assert len(forms) <= 256
    lines = [HEAD, f"static const Form FORM[{len(forms)}] = {{\n"]
    lines += [f"    {{{one >> 64}, 0x{one & (1 << 64) - 1:016x}}},\n" for one in forms]
    lines.append(f"}};\n\nstatic const uint8_t FORM_OF[{len(rows)}] = {{\n")
    for at in range(0, len(rows), 32):
        lines.append("    " + ",".join(str(place[one]) for one in rows[at : at + 32]) + ",\n")
    lines.append("};\n")
    return "".join(lines)


def main() -> int:
    text = write_table()
    if "--check" in sys.argv[1:]:
        return int(text != TABLE.read_text())
    TABLE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

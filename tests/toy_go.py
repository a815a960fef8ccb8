"""Toy Go-like ELFs of three kilobytes, built from named pieces: each kind of site and table once.

They do not run. They hold what the encoder reads: a .text, for amd64 with calls, a jump,
RIP-relative operands with and without immediates, for arm64 with B, BL, and ADRP before ADD and
before loads and stores of each width; type descriptors with names, methods and a mask; pointers in
data; a .gopclntab with go1.20's header, two records with pc-value tables, an inline tree and stack
objects; a moduledata; findfunctab; .bss. The length of the string `hello` is free, and all that
lies behind it moves when it changes.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping

AMD64, ARM64 = 62, 183  # e_machine
# address of the file's first byte; on arm64 so that code and data lie in different pages
BASES = {AMD64: 0x400000, ARM64: 0x40FC00}
BASE_ALIGN = 0x400
QUANTUM = {AMD64: 1, ARM64: 4}  # bytes that a pc-value table counts in
NAMES = ("main.main", "main.helper", "main.(*T).Get", "main.inlined")
SECTION_NAMES = (".text", ".rodata", ".typelink", ".gopclntab", ".data", ".bss", ".shstrtab")
SYMBOL_SECTIONS = (".symtab", ".strtab")  # Go puts their names last
PLT = ".plt"  # of a binary that calls C: code in which no function of Go begins
ALLOC, EXEC = 2, 4

At = Mapping[str, int]  # name of a piece -> its address
Piece = tuple[str, int, bytes]  # name, alignment, bytes


def rel(at: At, here: str, end: int, target: str) -> bytes:
    """A displacement from `end` bytes into the function `here`."""
    return struct.pack("<i", at[target] - (at[here] + end))


def text(at: At, hello: bytes) -> list[Piece]:
    """Functions with `int3` behind them as Go pads; `main` is as long as `hello` wants it."""
    main = bytes.fromhex("0f1f4000")  # nop: a field is no candidate in the text's first four bytes
    main += bytes.fromhex("488d05") + rel(at, "main", 11, "other")  # lea rax, [other]
    main += b"\xe8" + rel(at, "main", 16, "helper")  # call helper
    main += bytes.fromhex("833d") + rel(at, "main", 23, "flag") + b"\0"  # cmp dword [flag], 0
    main += bytes.fromhex("0f85") + rel(at, "main", 29, "method")  # jne method
    main += bytes.fromhex("c705") + rel(at, "main", 39, "flag") + b"\7\0\0\0"  # mov [flag], 7
    main += bytes.fromhex("488b0d") + rel(at, "main", 46, "cell") + b"\xc3"  # mov rcx, [cell]; ret
    helper = bytes.fromhex("488d1d") + rel(at, "helper", 7, "type") + b"\x90\xc3"  # lea rbx, [type]
    method = b"\xe9" + rel(at, "method", 5, "helper") + b"\xeb\xf9"  # jmp helper; a near jump
    room = 64 + 64 * (len(hello) // 16)
    return [
        ("main", 64, main.ljust(room, b"\xcc")),
        ("helper", 64, helper.ljust(64, b"\xcc")),
        ("method", 64, method.ljust(64, b"\xcc")),
    ]


def page(at: At, here: int, target: str, register: int) -> bytes:
    """adrp x<register>, target; `here` is the instruction's address."""
    pages = (at[target] >> 12) - (here >> 12)
    return struct.pack(
        "<I", 0x90000000 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5 | register
    )


def low(at: At, opcode: int, width: int, target: str, register: int) -> bytes:
    """The other half of a pair, to or from x9 or its kin: the low 12 bits in units of `width`."""
    part = (at[target] & 0xFFF) // width
    return struct.pack("<I", opcode | part << 10 | register << 5 | 9)


def branch(at: At, here: int, opcode: int, target: str) -> bytes:
    return struct.pack("<I", opcode | (at[target] - here >> 2) & 0x3FFFFFF)


B, BL, ADD = 0x14000000, 0x94000000, 0x91000000
PAIRS = (  # what stands behind the adrp, in `main`: opcode, bytes of a unit, target
    ("add", ADD, 1, "other"),
    ("ldrb", 0x39400000, 1, "other"),
    ("ldrh", 0x79400000, 2, "flag"),
    ("ldr w", 0xB9400000, 4, "flag"),
    ("str w", 0xB9000000, 4, "flag"),
    ("ldr x", 0xF9400000, 8, "cell"),
    ("ldr q", 0x3DC00000, 16, "moduledata"),
)


def text_arm64(at: At, hello: bytes) -> list[Piece]:
    """The same three functions; `main` is as long as `hello` wants it."""
    main = bytes.fromhex("1f2003d5")  # nop
    for register, (_, opcode, width, target) in enumerate(PAIRS):
        main += page(at, at["main"] + len(main), target, register)
        main += low(at, opcode, width, target, register)
    main += branch(at, at["main"] + len(main), BL, "helper")
    main += branch(at, at["main"] + len(main), B, "method")
    helper = page(at, at["helper"], "type", 1) + low(at, ADD, 1, "type", 1)
    helper += bytes.fromhex("c0035fd6")  # ret
    method = branch(at, at["method"], B, "helper") + struct.pack("<I", B | 0x3FFFFFF)  # a near jump
    room = 128 + 64 * (len(hello) // 16)
    return [
        ("main", 64, main.ljust(room, b"\0")),
        ("helper", 64, helper.ljust(64, b"\0")),
        ("method", 64, method.ljust(64, b"\0")),
    ]


def rodata(at: At, hello: bytes) -> list[Piece]:
    """A named struct type with one method, its names, two strings, a mask, findfunctab."""
    types = at["types"]

    def off(name: str) -> int:
        return at[name] - types

    # src/internal/abi/type.go: Type (48 bytes), StructType, UncommonType, Method
    kind = struct.pack("<QQIBBBBQQii", 16, 8, 0x1234, 1, 8, 8, 25, 0, at["mask"], off("name T"), 0)
    kind += struct.pack("<QQQQ", 0, at["type"] + 112, 0, 0)  # PkgPath; Fields: none
    kind += struct.pack("<iHHI", off("name main"), 1, 1, 16) + b""
    text_ = at["main"]
    kind += struct.pack(
        "<iiii", off("name Get"), off("type func"), at["method"] - text_, at["method"] - text_
    )
    func = struct.pack("<QQIBBBBQQii", 8, 8, 0x77, 0, 8, 8, 19, 0, at["mask"], off("name f"), 0)
    func += struct.pack("<HHI", 0, 0, 0)

    def name(value: bytes, flags: int = 1) -> bytes:
        return bytes((flags, len(value))) + value

    span = at["end of text"] - at["main"]
    findfunctab = struct.pack("<I", 0) + bytes(-(-span // 256))
    return [
        ("hello", 1, hello),
        ("types", 64, bytes(8)),
        ("type", 32, kind),
        ("type func", 32, func),
        ("name T", 1, name(b"*main.T")),
        ("name main", 1, name(b"main", 0)),
        ("name Get", 1, name(b"Get")),
        ("name f", 1, name(b"*func()")),
        ("other", 1, b"another string"),
        ("mask", 1, b"\1"),
        ("findfunctab", 32, findfunctab),
        ("pointers", 8, struct.pack("<QQ", at["other"], at["helper"])),
        ("room", 8, bytes(96)),
    ]


def pclntab(at: At, quantum: int) -> list[Piece]:
    """src/debug/gosym/pclntab.go and src/runtime/runtime2.go _func, go1.20."""
    base, start = at["pclntab"], at["main"]
    names, place = b"", []
    for one in NAMES:
        place.append(len(names))
        names += one.encode() + b"\0"
    functions = ("main", "helper", "method")
    header = struct.pack(
        "<IHBBQQQQQQQQ", 0xFFFFFFF1, 0, quantum, 8, 3, 1, start,
        *(at[n] - base for n in ("funcnames", "cutab", "files", "pctab", "functab")),
    )  # fmt: skip
    functab = b"".join(
        struct.pack("<II", at[f] - start, at["record " + f] - at["functab"]) for f in functions
    ) + struct.pack("<I", at["end of text"] - start)

    def pc(name: str) -> int:
        return at[name] - at["pctab"]

    def record(index: int, function: str, pcdata: tuple[int, ...], funcs: tuple[int, ...]) -> bytes:
        head = struct.pack(
            "<IiiIIIIIIiBBBB", at[function] - start, place[index], 0, 0,
            pc("pcsp"), pc("pcfile"), pc("pcln " + function), len(pcdata),
            0, 1, 0, 0, 0, len(funcs),
        )  # fmt: skip
        return head + b"".join(struct.pack("<I", v) for v in (*pcdata, *funcs))

    gofunc, none = at["gofunc"], 0xFFFFFFFF
    half, whole = 32 // quantum, 64 // quantum
    main_data = (
        at["args map"] - gofunc,
        none,
        at["stack objects"] - gofunc,
        at["inline tree"] - gofunc,
    )
    inline = struct.pack("<BBBBiii", 0, 0, 0, 0, place[3], 5, 1)
    stack = struct.pack("<QiiiI", 1, -16, 16, 8, at["mask"] - at["rodata"])
    return [
        ("pclntab", 32, header),
        ("funcnames", 32, names),
        ("cutab", 32, struct.pack("<I", 0)),
        ("files", 32, b"main.go\0"),
        ("pctab", 32, b"\0"),
        ("pcsp", 1, bytes((2, whole, 0))),
        ("pcfile", 1, bytes((2, whole, 0))),
        ("pcln main", 1, bytes((10, half, 2, half, 0))),
        ("pcln helper", 1, bytes((20, whole, 0))),
        ("pcln method", 1, bytes((30, whole, 0))),
        ("functab", 32, functab),
        ("record main", 4, record(0, "main", (pc("pcsp"), 0), main_data)),
        ("record helper", 4, record(1, "helper", (), ())),
        ("record method", 4, record(2, "method", (pc("pcsp"),), (at["args map"] - gofunc,))),
        ("gofunc", 32, b""),
        ("args map", 1, struct.pack("<iiB", 1, 2, 1)),
        ("inline tree", 4, inline),
        ("stack objects", 8, stack),
        ("end of pclntab", 8, bytes(8)),
    ]  # fmt: skip


def data(at: At) -> list[Piece]:
    """src/runtime/symtab.go moduledata, go1.26, as words; and two pointers."""
    words = [0] * 48
    words[0] = at["pclntab"]
    for index, name in ((1, "funcnames"), (4, "cutab"), (7, "files"), (10, "pctab"),
                        (13, "functab"), (16, "functab")):  # fmt: skip
        words[index] = at[name]
    words[19:24] = [at["findfunctab"], at["main"], at["end of text"], at["main"], at["end of text"]]
    words[37:41] = [at["types"], at["other"], at["rodata"], at["gofunc"]]
    return [
        ("moduledata", 32, struct.pack("<48Q", *words)),
        ("cell", 8, struct.pack("<QQ", at["other"], at["type"])),
    ]


def align(value: int, to: int) -> int:
    return -(-value // to) * to


def symbol_table(at: At) -> tuple[bytes, bytes]:
    """Symbols of some pieces, and their names."""
    names, rows = b"\0", bytes(24)
    for piece, size in (("main", 64), ("helper", 64), ("hello", 12), ("cell", 16), ("flag", 4)):
        rows += struct.pack("<IBBHQQ", len(names), 1, 0, 1, at[piece], size)
        names += b"main." + piece.encode() + b"\0"
    return rows, names


def lay_out(
    at: At, hello: bytes, machine: int = AMD64, symbols: bool = False, plt: bool = False
) -> tuple[bytes, dict[str, int]]:
    """The file with the addresses `at`, and where its pieces really are."""
    code = text(at, hello) if machine == AMD64 else text_arm64(at, hello)
    base, quantum = BASES[machine], QUANTUM[machine]
    link = struct.pack("<i", at["type"] - at["types"])
    parts: list[tuple[str, int, list[Piece]]] = [
        (".text", ALLOC | EXEC, code),
        (".rodata", ALLOC, [("rodata", 32, b""), *rodata(at, hello)]),
        (".typelink", ALLOC, [("typelink", 32, link)]),
        (".gopclntab", ALLOC, pclntab(at, quantum)),
        (".data", ALLOC | 1, data(at)),
    ]
    if plt:
        jump = bytes.fromhex("ff25") + rel(at, "plt", 6, "cell")  # jmp [cell]
        parts.insert(1, (PLT, ALLOC | EXEC, [("plt", 16, jump * 2)]))
    sections = SECTION_NAMES + (PLT,) * plt + SYMBOL_SECTIONS * symbols
    names = b"\0" + b"".join(n.encode() + b"\0" for n in sections)
    count = len(sections) + 1
    body = bytearray(64 + 56 + 64 * count)
    found: dict[str, int] = {}
    rows = [bytes(64)]

    def row(
        name: str, kind: int, flags: int, addr: int, offset: int, size: int, link: int = 0
    ) -> bytes:
        at_name = names.index(b"\0" + name.encode() + b"\0") + 1
        return struct.pack("<IIQQQQIIQQ", at_name, kind, flags, addr, offset, size, link, 0, 32, 0)

    for name, flags, pieces in parts:
        body += bytes(align(len(body), 64) - len(body))
        offset = len(body)
        for piece, alignment, content in pieces:
            body += bytes(align(len(body), alignment) - len(body))
            found[piece] = base + len(body)
            body += content
        rows.append(row(name, 1, flags, base + offset, offset, len(body) - offset))
        if name == ".text":
            found["end of text"] = base + len(body)
    body += bytes(align(len(body), 64) - len(body))
    found["flag"] = base + len(body)
    rows.append(row(".bss", 8, ALLOC | 1, found["flag"], len(body), 64))
    size = len(body)
    if symbols:
        for name, kind, content in zip(SYMBOL_SECTIONS, (2, 3), symbol_table(at), strict=True):
            rows.append(row(name, kind, 0, 0, len(body), len(content), len(rows) + 1))
            body += content
    rows.append(row(".shstrtab", 3, 0, 0, len(body), len(names)))
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, machine, 1, found["main"], 64, 120,
        0, 64, 56, 1, 64, count, count - 1,
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, size, size + 64, BASE_ALIGN)
    start = header + load + b"".join(rows)
    body[: len(start)] = start
    return bytes(body + names), found


def toy_go(
    hello: bytes = b"hello, world", machine: int = AMD64, symbols: bool = False, plt: bool = False
) -> bytes:
    """The toy; `hello` may have any length up to 200 bytes."""
    _, at = lay_out(defaultdict(int), hello, machine, symbols, plt)
    return lay_out(at, hello, machine, symbols, plt)[0]


def place_of(piece: str, hello: bytes = b"hello, world", machine: int = AMD64) -> int:
    """File position of a piece."""
    return lay_out(defaultdict(int), hello, machine)[1][piece] - BASES[machine]

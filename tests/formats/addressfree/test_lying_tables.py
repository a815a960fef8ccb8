"""Binaries whose headers and tables lie about sizes, counts and places, and hints that lie: raw or
right, and no more memory than a small multiple of what is there."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_go import AMD64, ARM64, BASES, NAMES, place_of, toy_go
from trust import TrustCases

from layerkit.errors import FormatError
from layerkit.formats import addressfree
from layerkit.formats.elf import EHDR, PHDR, SHDR, SHT_SYMTAB, SYM, parse_elf, strip_symbols
from layerkit.formats.golang import PCHEADER

MACHINES = {"amd64": AMD64, "arm64": ARM64}
MEMORY_LIMIT = 48 << 20  # bytes while a toy of three kilobytes is encoded
NUMBERS = (
    0,
    1,
    0xFFFF,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 8,
)


def fields(machine: int) -> list[tuple[int, int]]:
    """Place and width of each number in headers, pclntab, function records and module data."""
    toy = toy_go(machine=machine)
    elf = parse_elf(toy)
    found = [(at, 8) for at in (24, 32, 40)] + [(at, 2) for at in range(52, EHDR.size, 2)]
    for index in range(len(elf.segments)):
        start = elf.segment_table_offset + index * PHDR.size
        found += [(start + at, 8) for at in range(8, PHDR.size, 8)]
    for index in range(1, len(elf.sections)):
        start = elf.section_table_offset + index * SHDR.size
        found += [(start + at, 4) for at in (0, 4, 40)]
        found += [(start + at, 8) for at in (8, 16, 24, 32, 48)]
    start = place_of("pclntab", machine=machine)
    found += [(start + at, 8) for at in range(8, PCHEADER.size, 8)]
    start = place_of("moduledata", machine=machine)
    found += [(start + at, 8) for at in range(0, 8 * 48, 8)]
    for piece, size in (("functab", 28), ("record main", 68), ("stack objects", 28), ("type", 128)):
        start = place_of(piece, machine=machine)
        found += [(start + at, 4) for at in range(0, size, 4)]
    return found


def lies(machine: int) -> Iterator[tuple[str, bytes]]:
    """Each field with each number."""
    toy = toy_go(machine=machine)
    for at, width in fields(machine):
        for number in NUMBERS:
            changed = bytearray(toy)
            changed[at : at + width] = (number & (1 << 8 * width) - 1).to_bytes(width, "little")
            yield f"{width} bytes at {at} = {number:#x}", bytes(changed)


def assert_right_and_small(about: str, binary: bytes) -> str:
    tracemalloc.start()
    try:
        made = addressfree.encode(binary)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert addressfree.decode(made.form) == binary, about
    assert peak <= MEMORY_LIMIT, f"{about}: {peak} bytes"
    return made.why_raw


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_number_that_lies_costs_no_memory(machine: int) -> None:
    seed = random.randrange(1 << 32)
    for about, binary in random.Random(seed).sample(list(lies(machine)), 25):
        assert_right_and_small(f"seed {seed}: {about}", binary)


@pytest.mark.slow
@pytest.mark.trust("toys with one number of a table at a limit, memory bounded")
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_no_number_that_lies_costs_memory(machine: int, trust_cases: TrustCases) -> None:
    for about, binary in lies(machine):
        trust_cases.encoded(assert_right_and_small(about, binary))


addresses = st.integers(-8, 3000).map(lambda at: BASES[AMD64] + at) | st.integers(0, (1 << 64) - 1)
sizes = st.integers(0, 300) | st.sampled_from([1 << 31, (1 << 63) - 1, 1 << 63])
names = st.sampled_from([b"", b"main.x", b"type:*", b"..stmp_1", *(n.encode() for n in NAMES)])


@given(st.dictionaries(addresses, st.tuples(names | st.binary(max_size=9), sizes), max_size=12))
def test_hints_that_lie_give_a_form_that_comes_back(symbols: dict[int, tuple[bytes, int]]) -> None:
    toy = toy_go()
    made = addressfree.encode(toy, addressfree.Hints(symbols))
    assert addressfree.decode(made.form) == toy


def with_symbols(rows: list[tuple[int, int, int]]) -> bytes:
    """The toy with a symbol table with other rows: name, address, size."""
    toy = bytearray(toy_go(symbols=True))
    place = next(s.offset for s in parse_elf(bytes(toy)).sections if s.kind == SHT_SYMTAB)
    for index, (name, addr, size) in enumerate(rows):
        struct.pack_into("<IBBHQQ", toy, place + index * SYM.size, name, 1, 0, 1, addr, size)
    return bytes(toy)


wide = st.integers(0, (1 << 64) - 1)


@given(st.lists(st.tuples(st.integers(0, 60), addresses | wide, sizes | wide), max_size=6))
def test_a_symbol_table_that_lies_gives_hints_or_a_format_error(
    rows: list[tuple[int, int, int]],
) -> None:
    binary = with_symbols(rows)
    try:
        hints = addressfree.read_hints(parse_elf(binary))
    except FormatError:
        return
    made = addressfree.encode(binary, hints)
    assert addressfree.decode(made.form) == binary


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_toy_with_symbols_strips_to_one_without(machine: int) -> None:
    named = parse_elf(toy_go(machine=machine, symbols=True))
    bare = parse_elf(strip_symbols(named))
    assert [s.name for s in bare.sections] == [s.name for s in parse_elf(toy_go()).sections]
    assert addressfree.encode(bare.data, addressfree.read_hints(named)).why_raw == ""


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_strip_raises_only_format_errors(changes: list[tuple[int, int]]) -> None:
    named = toy_go(symbols=True)
    elf = parse_elf(named)
    first = elf.section_table_offset
    head = [*range(first, first + SHDR.size * len(elf.sections))]
    places = [*head, *range(len(named) - 90, len(named))]  # section headers, and all names
    damaged = bytearray(named)
    for at, value in changes:
        damaged[places[at % len(places)]] = value
    with contextlib.suppress(FormatError):
        other = parse_elf(bytes(damaged))
        addressfree.read_hints(other)
        strip_symbols(other)

"""formats/elf: what is read, and files whose names ask for more memory than they have."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest
from toy_go import SECTION_NAMES, SYMBOL_SECTIONS, toy_go

from layerkit.errors import FormatError
from layerkit.formats.elf import EHDR, SHDR, SHT_SYMTAB, SYM, Elf, parse_elf, strip_symbols

LONG = 1 << 20  # bytes of a name that many rows share


def peak_of(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def with_names(row_count: int) -> bytes:
    """A file of `row_count` sections that share one name of a megabyte."""
    rows = bytearray()
    names_at = EHDR.size + row_count * SHDR.size
    for _ in range(row_count):
        rows += SHDR.pack(1, 3, 0, 0, names_at, LONG + 2, 0, 0, 1, 0)
    head = EHDR.pack(
        b"\x7fELF\2\1\1".ljust(16, b"\0"), 2, 62, 1, 0, 0, EHDR.size, 0, EHDR.size, 0, 0, SHDR.size,
        row_count, row_count - 1,
    )  # fmt: skip
    return head + bytes(rows) + b"\0" + b"n" * LONG + b"\0"


def with_symbols(count: int) -> Elf:
    """A toy whose symbols share one name of a megabyte."""
    toy = bytearray(toy_go(symbols=True))
    elf = parse_elf(bytes(toy))
    index = next(i for i, s in enumerate(elf.sections) if s.kind == SHT_SYMTAB)
    table = SYM.pack(0, 1, 0, 1, 0x400300, 8) * count
    for at, size in ((index, len(table)), (index + 1, LONG + 1)):
        place = elf.section_table_offset + at * SHDR.size
        struct.pack_into("<QQ", toy, place + 24, len(toy), size)
        toy += table if at == index else b"n" * LONG + b"\0"
    return parse_elf(bytes(toy))


def test_the_toys_sections_and_symbols_are_read() -> None:
    elf = parse_elf(toy_go(symbols=True))
    *loaded, names = SECTION_NAMES
    assert [s.name for s in elf.sections[1:]] == [*loaded, *SYMBOL_SECTIONS, names]
    assert [s.name for s in elf.symbols()] == [
        b"main.main", b"main.helper", b"main.hello", b"main.cell", b"main.flag",
    ]  # fmt: skip


def test_strip_leaves_a_file_without_symbols_as_it_is() -> None:
    assert strip_symbols(parse_elf(toy_go())) == toy_go()


def test_sections_that_share_a_long_name_cost_no_memory() -> None:
    raw = with_names(2000)
    assert peak_of(lambda: parse_elf(raw)) < 8 << 20


def test_symbols_that_share_a_long_name_cost_no_memory() -> None:
    elf = with_symbols(2000)
    assert peak_of(elf.symbols) < 8 * len(elf.data)


@pytest.mark.parametrize("size", [0, 1, EHDR.size - 1])
def test_a_file_without_a_whole_header_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        parse_elf(toy_go()[:size])

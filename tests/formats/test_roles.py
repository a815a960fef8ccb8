"""Roles of a binary's bytes: toys and real builds; every byte has one; damage is a FormatError."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from go_builds import STRIPPED, SYMBOLS_ONLY, build_go
from toy_go import place_of, toy_go

from layerkit.errors import FormatError
from layerkit.formats import addressfree
from layerkit.formats.elf import parse_elf, strip_symbols
from layerkit.formats.gonames import BASE, CODE, SHARED
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.layerform import encode_layer
from layerkit.formats.roles import binary_roles, form_roles, layer_roles

# Types, an itab, strings, a map of its own, a closure, generic code of the standard library
LARGER = {
    "go.mod": "module example.com/larger\n\ngo 1.20\n",
    "main.go": (
        'package main\n\nimport (\n\t"fmt"\n\t"os"\n\t"sort"\n\t"sync/atomic"\n)\n\n'
        "var kept atomic.Pointer[box]\n\n"
        "type shape interface{ area() float64 }\n\ntype box struct{ w, h float64 }\n\n"
        "func (b *box) area() float64 { return b.w * b.h }\n\n"
        'var table = map[string]*box{"one box of many": {1, 2}, "a second box": {3, 4}}\n\n'
        '//go:noinline\nfunc show(s shape) string { return fmt.Sprintf("an area of %v", s.area()) }'
        '\n\nfunc main() {\n\tfmt.Fprintf(os.Stderr, "%T", &kept)\n'
        "\tvar names []string\n\tfor name := range table {\n"
        "\t\tnames = append(names, name)\n\t}\n"
        "\tsort.Slice(names, func(i, j int) bool { return names[i] > names[j] })\n"
        "\tfor _, name := range names {\n\t\tfmt.Fprintln(os.Stderr, show(table[name]))\n\t}\n}\n"
    ),
}


def role_at(binary: bytes, offset: int) -> int:
    return int(binary_roles(binary).painted()[offset])


# Every function and type of the toy is of package main
TOY = {
    "main": CODE,
    "helper": CODE,
    "method": CODE,
    "type": CODE,  # by its package path
    "name Get": CODE,  # only main's type has it
    "mask": CODE,
    "hello": SHARED,  # nothing refers to it, and nothing known lies before it
    "funcnames": CODE,
    "pcsp": CODE,
    "functab": CODE,
    "record method": CODE,
    "inline tree": CODE,
    "pclntab": SHARED,
    "moduledata": SHARED,
    "cell": CODE,  # a word that points to main's type
}


@pytest.mark.parametrize(("piece", "role"), TOY.items())
def test_a_toy_piece_by_piece(piece: str, role: int) -> None:
    assert role_at(toy_go(), place_of(piece)) == role


# The same with base's `sort.Sort` and `sort.Stable` in place of `main.main` and `main.helper`, so
# that only one function is code
MIXED = {
    "main": BASE,
    "method": CODE,
    "record helper": BASE,
    "record method": CODE,
    "pcln main": BASE,
    "pcln method": CODE,
    "pcfile": BASE,  # all three use it: the innermost
    "args map": BASE,  # `main` and `method` use it
    "findfunctab": BASE,  # its page begins with `main`
    "typelink": CODE,  # its only entry is main's type
    "files": BASE,  # one unit, most of it base
    "type": CODE,  # base refers to it, but it says whose it is
    "cell": CODE,
}


@pytest.mark.parametrize(("piece", "role"), MIXED.items())
def test_a_toy_of_two_roles(piece: str, role: int) -> None:
    toy = toy_go().replace(b"main.main\0", b"sort.Sort\0").replace(b"main.helper", b"sort.Stable")
    assert role_at(toy, place_of(piece)) == role


def test_every_byte_has_one_role() -> None:
    ranges = binary_roles(toy_go())
    assert sum(ranges.sizes().values()) == ranges.size == len(toy_go())


def test_a_form_has_the_roles_of_its_binary_at_its_end() -> None:
    binary = toy_go()
    form = addressfree.encode(binary).form
    painted = form_roles(len(form), binary_roles(binary)).painted()
    assert painted[-len(binary) :].tolist() == binary_roles(binary).painted().tolist()
    assert set(painted[: -len(binary)].tolist()) == {SHARED}


def test_what_is_not_go_is_refused() -> None:
    with pytest.raises(FormatError):
        binary_roles(b"text")


def test_a_layer_without_a_form_has_the_layers_role() -> None:
    tar = build_tar([Entry("etc/zone", bytes(3000))])
    assert layer_roles(tar, BASE).form.sizes()["base"] == len(tar)


def test_mutations_of_a_toy_raise_only_format_errors() -> None:
    seed = random.randrange(1 << 32)
    rng, toy = random.Random(seed), toy_go()
    for index in range(300):
        changed = bytearray(toy)
        for _ in range(rng.choice((1, 1, 2, 4))):
            changed[rng.randrange(len(changed))] = rng.choice((0, 0x7F, 0x80, 0xFF))
        with contextlib.suppress(FormatError):
            assert binary_roles(bytes(changed)).size == len(toy), f"seed {seed}, {index}"


def test_truncations_of_a_toy_raise_only_format_errors() -> None:
    toy = toy_go()
    for size in range(0, len(toy), 7):
        with pytest.raises(FormatError):
            binary_roles(toy[:size])


def section_sizes(binary: bytes, name: str) -> dict[str, int]:
    section = parse_elf(binary).section(name)
    assert section is not None
    counts = binary_roles(binary).sizes_between([section.offset, section.offset + section.size])
    return dict(zip(("shared", "base", "deps", "code"), counts[0].tolist(), strict=True))


@pytest.mark.go
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_a_program_of_its_own_and_the_standard_library(go_toolchain: Path, arch: str) -> None:
    binary = build_go(go_toolchain, LARGER, STRIPPED, arch=arch)
    text, data = section_sizes(binary, ".text"), section_sizes(binary, ".gopclntab")
    assert text["shared"] == text["deps"] == data["deps"] == 0
    assert 500 < text["code"] < 5000 < text["base"]
    assert 300 < data["code"] < 5000 < data["base"]


@pytest.mark.go
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize(
    "release", ["go1.20.14", "go1.22.12", "go1.24.9", "go1.25.4", "go1.26.8", "go1.27rc1"]
)
def test_other_releases(go_toolchain: Path, release: str, arch: str) -> None:
    binary = build_go(go_toolchain, LARGER, STRIPPED, release=release, arch=arch)
    ranges = binary_roles(binary)
    painted = ranges.painted()
    assert int(painted[binary.index(b"one box of many")]) == CODE
    assert int(painted[binary.index(b"runtime.mallocgc\0")]) == BASE
    assert 1500 < ranges.sizes()["code"] < 20_000
    assert ranges.sizes()["deps"] == 0


@pytest.mark.go
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_names_and_strings_are_of_who_uses_them(go_toolchain: Path, arch: str) -> None:
    binary = build_go(go_toolchain, LARGER, STRIPPED, arch=arch)
    painted = binary_roles(binary).painted()
    found = {
        text: int(painted[binary.index(text)])
        for text in (
            b"main.(*box).area\0",
            b"example.com/larger/main.go",
            b"one box of many",
            b"an area of %v",
            b"\x09*main.box",
            b"map[string]*main.box",  # a type of others
            b"atomic.Pointer[main.box]",  # of a package of base, for a type of code
        )
    }
    theirs = (b"runtime.mallocgc\0", b"runtime/malloc.go", b"map[string]bool")
    assert set(found.values()) == {CODE}
    assert {int(painted[binary.index(text)]) for text in theirs} == {BASE}


@pytest.mark.go
def test_a_func_value_is_of_its_function(go_toolchain: Path) -> None:
    """The runtime refers to main.main by a word that holds its address."""
    binary = build_go(go_toolchain, LARGER, SYMBOLS_ONLY)
    elf = parse_elf(binary)
    addr = next(symbol.addr for symbol in elf.symbols() if symbol.name == b"main.main")
    stripped = strip_symbols(elf)
    text = elf.section(".text")
    assert text is not None
    at = stripped.index(addr.to_bytes(8, "little"), text.offset + text.size)
    assert role_at(stripped, at) == CODE


@pytest.mark.go
def test_the_symbol_table_is_told_by_its_names(go_toolchain: Path) -> None:
    binary = build_go(go_toolchain, LARGER, SYMBOLS_ONLY)
    table, names = section_sizes(binary, ".symtab"), section_sizes(binary, ".strtab")
    assert role_at(binary, binary.rindex(b"main.main\0")) == CODE
    assert role_at(binary, binary.rindex(b"runtime.mallocgc\0")) == BASE
    assert 0 < table["code"] < table["base"]
    assert table["base"] + table["code"] > 0.8 * sum(table.values())
    assert names["shared"] < 0.1 * names["base"]


@pytest.mark.go
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_rules_agree_with_the_symbols_where_there_are_some(go_toolchain: Path, arch: str) -> None:
    """What follows by rule in a stripped binary, against the names in its unstripped twin."""
    stripped = build_go(go_toolchain, LARGER, STRIPPED, arch=arch)
    unstripped = build_go(go_toolchain, LARGER, SYMBOLS_ONLY, arch=arch)
    by_rule, by_name = binary_roles(stripped).painted(), binary_roles(unstripped).painted()
    for section in parse_elf(stripped).sections:
        if section.addr and section.in_file and section.size:
            part = slice(section.offset, section.offset + section.size)
            differ = int(np.count_nonzero(by_rule[part] != by_name[part]))
            assert differ <= 0.05 * section.size, section.name


@pytest.mark.go
def test_a_layer_form_says_the_layers_role_outside_its_binaries(go_toolchain: Path) -> None:
    binary = build_go(go_toolchain, LARGER, STRIPPED)
    tar = build_tar([Entry("app/fn", binary, 0o755), Entry("etc/zone", bytes(5000))])
    made = encode_layer(tar)
    assert made is not None
    roles = layer_roles(made.form, CODE)
    own = binary_roles(binary).sizes()
    assert roles.plain.sizes() == own | {"code": own["code"] + len(tar) - len(binary)}
    assert (roles.form.size, roles.plain.size) == (len(made.form), len(tar))

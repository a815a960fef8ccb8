"""Build info: the lines of `go version -m`, framed as cmd/go does it; damage is a FormatError."""

from __future__ import annotations

import dataclasses

import pytest
from toy_go import toy_go

from layerkit.errors import FormatError
from layerkit.formats.buildinfo import (
    BuildInfo,
    Module,
    parse_build_info,
    read_build_info,
)
from layerkit.formats.elf import Elf, parse_elf

TEXT = (
    "path\texample.com/app/cmd/fn\n"
    "mod\texample.com/app\t(devel)\t\n"
    "dep\tgithub.com/a/b/v2\tv2.1.0\th1:abc=\n"
    "dep\texample.com/lib\tv0.0.0\n"
    "=>\t../lib\t(devel)\t\n"
    "build\t-trimpath=true\n"
)
WANTED = BuildInfo(
    "go1.26.8",
    "example.com/app/cmd/fn",
    Module("example.com/app", "(devel)"),
    (
        Module("github.com/a/b/v2", "v2.1.0", sum="h1:abc="),
        Module("example.com/lib", "v0.0.0", "../lib", replaced_version="(devel)"),
    ),
    (("-trimpath", "true"),),
)
# src/cmd/go/internal/modload/build.go infoStart, infoEnd
START = bytes.fromhex("3077af0c9274080241e1c107e6d618e6")
END = bytes.fromhex("f932433186182072008242104116d8f2")


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def blob(text: str = TEXT, release: str = "go1.26.8", flags: int = 2) -> bytes:
    framed = START + text.encode() + END if text else b""
    header = (b"\xff Go buildinf:\x08" + bytes((flags,))).ljust(32, b"\0")
    return header + varint(len(release)) + release.encode() + varint(len(framed)) + framed


def file_with(data: bytes) -> Elf:
    """An ELF file without .go.buildinfo: the blob is looked for everywhere."""
    elf = parse_elf(toy_go())
    return dataclasses.replace(elf, data=elf.data + data)


def test_modules_and_replacements_are_read() -> None:
    assert read_build_info(file_with(blob())) == WANTED


def test_a_build_without_modules_has_only_a_release() -> None:
    assert read_build_info(file_with(blob(""))) == BuildInfo("go1.26.8")


def test_the_main_module_can_be_replaced_too() -> None:
    found = parse_build_info("go1.25.0", "mod\ta.b/c\tv1.0.0\n=>\t/src/c\t\t\n")
    assert found.main == Module("a.b/c", "v1.0.0", "/src/c")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        blob(flags=0),  # pointers, up to go1.17
        blob()[:40],
        blob()[:-40],
        blob("mod\tx\n"),
        blob().replace(b"example.com/app", b"example.com/\xff\xfe\xfd"),
    ],
)
def test_what_records_none_or_is_damaged_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_build_info(file_with(data))

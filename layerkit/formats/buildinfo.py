"""Go's build info in a linked binary: release, main package, its module, the other modules.

What `go version -m` prints; stripped binaries keep it. Go up to 1.17 stored it by pointers: read as
absent.
Sources: src/debug/buildinfo/buildinfo.go, src/runtime/debug/mod.go ParseBuildInfo, go1.18 to
go1.27. Limits: INFO_LIMIT.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError
from layerkit.formats.cursor import Reader
from layerkit.formats.elf import Elf

__all__ = ["BuildInfo", "Module", "parse_build_info", "read_build_info"]

MAGIC: Final = b"\xff Go buildinf:"
HEADER_SIZE: Final = 32  # bytes: magic, pointer size, flags, two pointers of older releases
FLAGS_AT: Final = 15
FLAG_INLINE: Final = 2  # two strings follow the header, each behind its length as a varint
FRAME_SIZE: Final = 16  # bytes before and after the text: cmd/go's infoStart and infoEnd
INFO_LIMIT: Final = 1 << 24  # bytes; a large server with 500 modules has 60 KB


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its import path and version; `replaced_by` names where its source came from.

    `sum` is go.sum's `h1:…` of the source that was used; "" for one from a folder.
    """

    path: str
    version: str
    replaced_by: str = ""
    sum: str = ""
    replaced_version: str = ""


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """`path` is the main package's import path; `main` is None for a build without modules;
    `settings` are those of the build (GOARCH, -ldflags), as they stand there."""

    release: str
    path: str = ""
    main: Module | None = None
    deps: tuple[Module, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


def read_build_info(elf: Elf) -> BuildInfo:
    """The build info of a binary; FormatError where it records none, or damaged."""
    section = elf.section(".go.buildinfo")
    data = elf.bytes_of(section) if section is not None else elf.data
    at = data.find(MAGIC)
    if at < 0 or at + HEADER_SIZE > len(data) or not data[at + FLAGS_AT] & FLAG_INLINE:
        raise FormatError("no Go build info")
    reader = Reader(data, "build info", at + HEADER_SIZE)
    release = bytes(reader.sized(INFO_LIMIT, "release"))
    framed = bytes(reader.sized(INFO_LIMIT, "module info"))
    # as in Go: without a newline before the end mark there is no module info
    whole = len(framed) >= 2 * FRAME_SIZE + 1 and framed[-FRAME_SIZE - 1 : -FRAME_SIZE] == b"\n"
    return parse_build_info(_text(release), _text(framed[FRAME_SIZE:-FRAME_SIZE]) if whole else "")


def parse_build_info(release: str, text: str) -> BuildInfo:
    """Parse the lines `path`, `mod`, `dep`, `=>` and `build`; others are of no use here."""
    path, main = "", None
    deps: list[Module] = []
    settings: list[tuple[str, str]] = []
    replaces_main = False
    for line in text.splitlines():
        word, *columns = line.split("\t")
        if word == "path":
            path = columns[0] if columns else ""
        elif word == "build" and columns:
            key, _, value = columns[0].partition("=")
            settings.append((_unquoted(key), _unquoted(value)))
        elif word in ("mod", "dep"):
            if len(columns) not in (2, 3):
                raise FormatError(f"build info: {len(columns)} columns of a module, want 2 or 3")
            module = Module(columns[0], columns[1], "", "".join(columns[2:]))
            replaces_main = word == "mod"
            if replaces_main:
                main = module
            else:
                deps.append(module)
        elif word == "=>" and columns and not replaces_main and deps:
            deps[-1] = _replaced(deps[-1], columns)
        elif word == "=>" and columns and main is not None:
            main = _replaced(main, columns)
    return BuildInfo(release, path, main, tuple(deps), tuple(settings))


def _replaced(module: Module, columns: list[str]) -> Module:
    path, version, checksum = [*columns, "", ""][:3]
    return Module(module.path, module.version, path, checksum, version)


def _unquoted(text: str) -> str:
    """Go quotes what has spaces or quotes in it, as JSON does but for rare escapes, which stay."""
    if text.startswith('"'):
        try:
            found = json.loads(text)
        except ValueError:
            return text
        return found if isinstance(found, str) else text
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == "`" else text


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise FormatError("build info is not UTF-8") from exc

"""docs/format.md: its tables are the code's Structs, its limits the code's constants."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

from layerkit.formats import (
    bundle,
    chunkmanifest,
    chunkpack,
    chunksync,
    delta,
    formpack,
    layerform,
    protocol,
    shelf,
    signature,
    tokens,
    update,
)
from layerkit.formats.addressfree import model, wire
from layerkit.formats.chunker import MAX_CHUNK_SIZE, PROFILES
from layerkit.jobs.pull import signatures

DOC = (Path(__file__).parent.parent.parent / "docs/format.md").read_text()
STRUCTS = {
    ("Chunk manifest", "Header"): chunkmanifest.HEADER,
    ("Chunk manifest", "Run"): chunkmanifest.RUN,
    ("Chunk manifest", "Chunk"): chunkmanifest.CHUNK,
    ("Chunk manifest change", "Header"): chunksync.HEADER,
    ("Chunk batch", "Header"): protocol.BATCH_HEADER,
    ("Update", "Header"): update.HEADER,
    ("Bundle", "Header"): bundle.HEADER,
    ("Bundle", "Row"): bundle.ROW,
    ("Chunk pack", "Index"): chunkpack.HEADER,
    ("Shelf entry", ""): shelf.HEADER,
    ("Labels of a layer", ""): layerform.LABELS_HEADER,
}


def section(title: str, part: str = "") -> str:
    text = re.split(rf"^## {title}$", DOC, flags=re.M)[1].split("\n## ")[0]
    return re.split(rf"^### {part}$", text, flags=re.M)[1].split("\n### ")[0] if part else text


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def places(layout: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of each field of a Struct."""
    found, offset = [], 0
    for token in re.findall(r"\d*[a-zA-Z]", layout.format):
        size = struct.calcsize("<" + token)
        found.append((offset, size))
        offset += size
    return found


@pytest.mark.parametrize("where", STRUCTS)
def test_tables_are_the_structs(where: tuple[str, str]) -> None:
    table = [(int(row[0]), int(row[1])) for row in rows(section(*where))]
    assert table == places(STRUCTS[where])


def test_profiles_are_the_codes() -> None:
    table = {
        row[0].strip("`"): row[2:] for row in rows(section("Chunk manifest", "Chunker profiles"))
    }
    assert table == {
        name: [str(n) for n in (p.min_size, p.avg_size, p.max_size, p.normalization)]
        for name, p in PROFILES.items()
    }


def test_limits_are_the_codes() -> None:
    assert [row[1] for row in rows(section("Limits"))] == [
        f"{MAX_CHUNK_SIZE >> 20} MiB",
        f"{chunkmanifest.MAX_CHUNK_COUNT:,}",
        f"{chunkmanifest.MAX_FORM_SIZE >> 30} GiB",
        f"{protocol.MAX_REQUEST_COUNT:,}",
        f"{protocol.MAX_WINDOW_SIZE >> 20} MiB",
        f"{wire.FIELD_LIMIT:,}",
        f"{wire.SMALL_LIMIT:,}, and one for each {wire.LABEL_SIZE} bytes of its body",
        f"{protocol.MAX_ERRORS_SIZE >> 10} KiB",
        f"{signature.MAX_BUNDLE_SIZE >> 10} KiB; {signatures.MAX_COUNT} are looked at",
    ]


def test_roles_are_the_codes() -> None:
    for name, code in chunkmanifest.ROLE_CODES.items():
        assert f"{code} {name or 'unknown'}" in section("Chunk manifest", "Header")


def test_magics_and_constants_of_the_form_are_the_codes() -> None:
    for title, magic in (
        ("Address-free form", wire.MAGIC),
        ("Layer form", layerform.MAGIC),
        ("Delta", delta.MAGIC),
        ("Update", update.MAGIC),
        ("Packed form", formpack.MAGIC),
        ("Chunk pack", chunkpack.MAGIC),
        ("Shelf entry", shelf.MAGIC),
        ("Labels of a layer", layerform.LABELS_MAGIC),
    ):
        assert f"`{magic.decode()}`" in section(title)
    text = section("Address-free form")
    assert f"{model.NEW:X}" in text and f"{model.TAG:X}" in text


def test_rules_are_the_codes() -> None:
    names = [row[0] for row in rows(section("Address-free form", "Rules"))]
    assert [int(name.split()[0]) for name in names] == list(range(model.RULE_COUNT))


def test_the_table_of_the_token_file_is_the_file() -> None:
    token = tokens.Token(tokens.Caller("x", ("*",), ()), bytes(32), "")
    document = json.loads(tokens.serialize_tokens([token]))
    fields = [row[0].strip("`") for row in rows(section("Token file"))]
    assert fields == list(document["tokens"][0])

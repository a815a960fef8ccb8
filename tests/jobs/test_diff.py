"""What `layerkit diff` counts: the changed layers only, by method, and chunks by ELF section."""

from __future__ import annotations

import random
import struct

from layerkit.digest import sha256_digest
from layerkit.jobs.diff import OUTSIDE, Methods, Version, compare_sections, compare_versions


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def version(*layers: bytes, binary: bytes = b"") -> Version:
    return Version("v", "binary", sha256_digest(b"".join(layers)), layers, binary)


def tiny_elf(text: bytes, data: bytes) -> bytes:
    """An ELF64 file with .text, .data, .shstrtab and nothing else that matters."""
    names = b"\0.text\0.data\0.shstrtab\0"
    bodies = [text, data, names]
    offset = 64
    rows = [b"\0" * 64]
    for name, body, kind in zip((1, 7, 13), bodies, (1, 1, 3), strict=True):
        rows.append(struct.pack("<IIQQQQIIQQ", name, kind, 2, 0, offset, len(body), 0, 0, 1, 0))
        offset += len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, offset, 0, 64, 56, 0, 64, 4, 3
    )
    return header + b"".join(bodies) + b"".join(rows)


def test_equal_versions_move_nothing() -> None:
    found = compare_versions(version(noise(50_000)), version(noise(50_000)))
    assert (found.whole_size, found.chunks_size, found.delta_size) == (0, 0, 0)


def test_a_small_edit_moves_fewer_bytes_in_chunks_than_whole() -> None:
    old = noise(200_000)
    new = old[:100_000] + b"edited" + old[100_006:]
    found = compare_versions(version(old), version(new))
    assert 0 < found.chunks_size < found.whole_size / 5


def test_a_layer_that_both_have_is_not_counted() -> None:
    base = noise(100_000, 2)
    found = compare_versions(version(base, noise(1000, 3)), version(base, noise(1000, 4)))
    assert found.whole_size < 2000


def test_forms_and_deltas_come_in_through_methods() -> None:
    methods = Methods(encode=lambda layer: b"", delta_size=lambda olds, new: 7)
    found = compare_versions(version(noise(9000)), version(noise(9000, 5)), methods)
    assert (found.chunks_size, found.delta_size) == (0, 7)


def test_sections_name_where_new_chunks_lie() -> None:
    text, data = noise(60_000, 6), noise(60_000, 7)
    edited = data[:30_000] + b"edited" + data[30_006:]
    changes = compare_sections(tiny_elf(text, data), tiny_elf(text, edited))
    assert changes[".text"].fetch_size == 0
    assert 0 < changes[".data"].fetch_size < 30_000
    assert changes[OUTSIDE].new_size == 64 + 4 * 64


def test_input_that_is_no_elf_has_no_sections() -> None:
    assert compare_sections(b"text", tiny_elf(b"a", b"b")) == {}
